package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
)

// readyEnv marks the process in the background. Its descriptor readyFD is a
// pipe to the one that a person started.
const (
	readyEnv = "GOIPIP_READY"
	readyFD  = 3
)

// runInBackground starts this program once more and returns when the tunnel of
// that one is up, or failed to come up. It is called by both.
func (o *options) runInBackground(ctx context.Context) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	if os.Getenv(readyEnv) == "" {
		return startInBackground()
	}
	ready := os.NewFile(readyFD, "ready")
	syscall.CloseOnExec(readyFD)
	out := newOutput(os.Stderr)
	log := slog.New(slog.NewTextHandler(out, nil))
	ctx, err = endWithNamespace(ctx)
	if err != nil {
		log.Warn("the tunnel will keep this network namespace alive", "err", err)
	}
	return runTunnel(ctx, cfg, log, func() {
		out.set(systemLog())
		err := errors.Join(leaveTerminal(), tell(ready))
		if err != nil {
			log.Warn("cannot leave the terminal", "err", err)
		}
	})
}

// startInBackground runs the same command line in a session of its own, and
// waits for word from it. Until then it writes to the same terminal.
func startInBackground() error {
	self, err := os.Executable() // not /proc/self/exe: ps(1) is to show the name
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), readyEnv+"=1")
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{write} // becomes readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	if n, _ := read.Read(make([]byte, 1)); n == 1 {
		return nil
	}
	// It ended without a word here, but has said why on standard error.
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) && exit.Exited() {
		return statusError(exit.ExitCode())
	} else if err != nil {
		return fmt.Errorf("the process in the background: %w", err)
	}
	return errors.New("the process in the background ended before the link was up")
}

// tell tells the one who waits that the tunnel is up.
func tell(ready *os.File) error {
	_, err := ready.Write([]byte{1})
	return errors.Join(err, ready.Close())
}

// leaveTerminal lets go of standard input, output and error, so that nobody
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

// systemLog is where a process without a terminal writes its log: syslog, or
// nowhere on a machine that has none.
func systemLog() io.Writer {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "goipip")
	if err != nil {
		return io.Discard
	}
	return w
}

// output is a writer that can be exchanged while it is in use.
type output struct{ w atomic.Pointer[io.Writer] }

func newOutput(w io.Writer) *output {
	o := &output{}
	o.set(w)
	return o
}

func (o *output) set(w io.Writer) { o.w.Store(&w) }

func (o *output) Write(b []byte) (int, error) { return (*o.w.Load()).Write(b) }

// statusError is an exit status whose reason a person has seen already.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
