package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long a process may take to end after SIGTERM.
const stopTimeout = 5 * time.Second

// pipeTimeout is how long output may still come, from children of a process, after its end.
const pipeTimeout = time.Second

// Process is a running command of a host. It takes the place of [exec.Cmd.Wait], which only one may call, where both
// the lab and a test have to wait.
type Process struct {
	host *Host
	cmd  *exec.Cmd

	reap  sync.Once
	ended chan struct{}
	err   error // of cmd.Wait, valid when ended is closed
}

// Start starts cmd inside the namespace. From then on it belongs to the lab, which ends it in Close; it gets SIGKILL when
// this process dies before that, unless cmd says otherwise by Pdeathsig.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	prepare(cmd)
	started := make(chan error)
	h.calls <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("host %s: start %s: %w", h.Name, cmd.Path, err)
	}
	p := &Process{host: h, cmd: cmd, ended: make(chan struct{})}
	h.lab.onClose(p.Stop)
	return p, nil
}

// prepare sets what the lab expects of a command.
func prepare(cmd *exec.Cmd) {
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	if attr.Pdeathsig == 0 {
		// It comes when the parent's *thread* ends (prctl(2), PR_SET_PDEATHSIG), here that of the host.
		attr.Pdeathsig = unix.SIGKILL
	}
	cmd.SysProcAttr = &attr
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = pipeTimeout
	}
}

// Output runs a command inside the namespace to its end and returns what it wrote to standard output and standard error.
// An error contains that too.
func (h *Host) Output(name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := h.Start(cmd)
	if err != nil {
		return "", err
	}
	if err := p.Wait(context.Background()); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return out.String(), nil
}

// Wait returns when the process has ended, as often as it is called. The error is an [*exec.ExitError] where the exit
// code is not 0, and that of ctx where the process still runs. As with [exec.Cmd.Wait], read a StdoutPipe to its end first.
func (p *Process) Wait(ctx context.Context) error {
	var err error
	select {
	case <-p.done():
		err = p.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w", p, err)
	}
	return nil
}

// Signal sends a signal. The error is [os.ErrProcessDone] where the process has been waited for.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, p, err)
	}
	return nil
}

// Stop ends the process by SIGTERM and waits for its end, whatever its exit code. It is an error that the process did not
// end within seconds: then it has been killed. Stopping an ended process does nothing.
func (p *Process) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done():
		return nil
	case <-time.After(stopTimeout):
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done()
	return fmt.Errorf("%s: still there %v after SIGTERM, killed", p, stopTimeout)
}

// Pid returns the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// String names the process in messages.
func (p *Process) String() string {
	return fmt.Sprintf("%s (pid %d) on host %s", strings.Join(p.cmd.Args, " "), p.Pid(), p.host.Name)
}

// done returns a channel that is closed at the end of the process. The one call of cmd.Wait waits for the first caller,
// because it also closes the pipes that the caller of Start may read.
func (p *Process) done() <-chan struct{} {
	p.reap.Do(func() {
		go func() {
			p.err = p.cmd.Wait()
			close(p.ended)
		}()
	})
	return p.ended
}
