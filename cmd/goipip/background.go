//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"

	"goipip/internal/logqueue"
)

// readyEnv marks the process in the background. Its descriptor readyFD is a
// pipe to the process that the user started.
const (
	readyEnv = "GOIPIP_READY"
	readyFD  = 3
)

// runInBackground starts this program once more and returns when the tunnel of
// that one is up, or failed to come up. It is called by both. The log goes to
// standard error until the tunnel is up, and to the system log from then on.
func (o *options) runInBackground(ctx context.Context) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	background := os.Getenv(readyEnv) != ""
	if background {
		syscall.CloseOnExec(readyFD)
	}
	if err := needTunnelDescriptors(cfg.Queues, cmp.Or(o.workers, cfg.Queues)); err != nil {
		return err
	}
	if !background {
		return startInBackground()
	}
	ready := os.NewFile(readyFD, "ready")
	terminal := logqueue.New(slog.NewTextHandler(os.Stderr, nil), logSize)
	defer terminal.Close(flushTimeout)
	system := logqueue.New(newSyslogHandler(dialSyslog), logSize)
	defer system.Close(flushTimeout)
	handler := newHandover(terminal.Handler(), system.Handler())
	start := slog.New(handler)
	if ctx, err = endWithNamespace(ctx); err != nil {
		start.Warn("the tunnel will keep this network namespace alive", "err", err)
	}
	return o.runOne(ctx, cfg, start, func(log *slog.Logger) {
		handler.done.Store(true)
		terminal.Close(flushTimeout)
		if err := errors.Join(leaveTerminal(), tell(ready)); err != nil {
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
	if err := cmd.Wait(); errors.As(err, &exit) && exit.Exited() {
		return statusError(exit.ExitCode())
	} else if err != nil {
		return fmt.Errorf("the process in the background: %w", err)
	}
	return errors.New("the process in the background ended before the link was up")
}

// tell tells the waiting process that the tunnel is up.
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
