//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/logqueue"
	"goipip/internal/tunnel"

	"github.com/spf13/cobra"
)

// readyEnv marks the process in the background. Its descriptor readyFD is a
// pipe to the process that starts it.
const (
	readyEnv = "GOIPIP_READY"
	readyFD  = 3
)

// firstTunnelTimeout is how long a daemon in the background waits for its first tunnel.
const firstTunnelTimeout = 10 * time.Second

// newDaemonCommand is what runs in the background.
func newDaemonCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    "daemon",
		Short:  "Run the tunnels of goipip tunnel add, which starts this",
		Hidden: true,
		Args:   noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv(readyEnv) == "" {
				return usageError{errors.New("goipip tunnel add starts the daemon: use that, or goipip run")}
			}
			err := o.runInBackground(cmd.Context())
			if errors.Is(err, control.ErrRuns) {
				return statusError(exitRuns)
			}
			return err
		},
	}
}

// runInBackground runs a daemon until its last tunnel ends. Until it takes tunnels, errors go
// to the terminal, and the log always to the system log.
func (o *options) runInBackground(ctx context.Context) error {
	syscall.CloseOnExec(readyFD)
	ready := os.NewFile(readyFD, "ready")
	workers := tunnel.DefaultQueues()
	if err := needTunnelDescriptors(tunnel.Config{Queues: tunnel.DefaultQueues()}, workers); err != nil {
		return err
	}
	q := logqueue.New(newSyslogHandler(dialSyslog), logSize)
	defer q.Close(flushTimeout)
	signals := notify()
	ctx, namespaceErr := endWithNamespace(ctx)
	s, err := o.serve(control.Process{Role: control.RoleBackground, Workers: workers}, q.Handler())
	if err != nil {
		return err
	}
	defer func() { s.close(whyDone(ctx)) }()
	if namespaceErr != nil {
		s.log.Warn("the tunnels will keep this network namespace alive", "err", namespaceErr)
	}
	go answer(signals, nil, s, func() { s.log.Info("SIGHUP ignored: there is no configuration file") })
	s.Expect(firstTunnelTimeout)
	if err := errors.Join(leaveTerminal(), tell(ready)); err != nil {
		s.log.Warn("cannot leave the terminal", "err", err)
	}
	for {
		err := s.Wait(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if s.EndIfEmpty() {
			if err != nil {
				return statusError(exitError) // the log has the reason
			}
			return nil
		}
	}
}

// startInBackground starts a daemon in a session of its own, and returns when it takes
// tunnels. Until then it writes errors to the same standard error.
func (o *options) startInBackground() error {
	self, err := os.Executable() // not /proc/self/exe: ps(1) is to show the name
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(self, "daemon")
	if o.control != "" {
		cmd.Args = slices.Insert(cmd.Args, 1, "--control", o.control)
	}
	cmd.Env = append(withoutManager(os.Environ()), readyEnv+"=1")
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{write} // becomes readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = closeOnExec(readyFD) // but for ExtraFiles
	if err == nil {
		err = cmd.Start()
	}
	write.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	if n, _ := read.Read(make([]byte, 1)); n == 1 {
		return nil
	}
	// It ended without a word here, but has said why on standard error.
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) && exit.ExitCode() == exitRuns {
		return control.ErrRuns
	} else if errors.As(err, &exit) && exit.Exited() {
		return statusError(exit.ExitCode())
	} else if err != nil {
		return fmt.Errorf("the process in the background: %w", err)
	}
	return errors.New("the process in the background ended before it took tunnels")
}

// tell tells the waiting process that tunnels can be added.
func tell(ready *os.File) error {
	_, err := ready.Write([]byte{1})
	return errors.Join(err, ready.Close())
}

// leaveTerminal lets go of standard input, output and error, so that no caller
// waits for their end.
func leaveTerminal() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := syscall.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}

// statusError is an exit status whose reason has been reported already.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
