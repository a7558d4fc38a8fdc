package top

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// stopTime is how long a signal may take to stop this process.
const stopTime = 500 * time.Millisecond

// stop is Ctrl-Z: it stops the process group, as the terminal would, until a shell continues it. Where there is no shell, as
// with ssh -t HOST goipip top, the kernel drops the signal (orphaned process groups, setpgid(2)), and Run returns after
// stopTime; tea.Suspend would wait for ever.
type stop struct{ ctx context.Context }

// Run is for tea.ExecCommand.
func (s stop) Run() error {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	if err := syscall.Kill(0, syscall.SIGTSTP); err != nil {
		return os.NewSyscallError("kill", err)
	}
	select {
	case <-continued:
	case <-time.After(stopTime):
	case <-s.ctx.Done():
	}
	return nil
}

// Nothing is read or written.
func (stop) SetStdin(io.Reader)  {}
func (stop) SetStdout(io.Writer) {}
func (stop) SetStderr(io.Writer) {}
