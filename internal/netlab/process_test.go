package netlab_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
)

func TestOutput(t *testing.T) {
	host := newHost(t, labtest.New(t), "h")
	var name string
	if err := host.Do(func() error { name = namespace(t); return nil }); err != nil {
		t.Fatal(err)
	}
	out, err := host.Output("readlink", "/proc/self/ns/net")
	if err != nil || strings.TrimSpace(out) != name {
		t.Errorf("a process runs in %q (%v), want %q", out, err, name)
	}

	out, err = host.Output("sh", "-c", "echo said >&2; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || out != "said\n" || !strings.Contains(err.Error(), "said") {
		t.Errorf("output %q, error %v, want what it said and exit code 3", out, err)
	}
	if _, err := host.Output("/no/such/program"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}

func TestProcess(t *testing.T) {
	host := newHost(t, labtest.New(t), "h")
	p, err := host.Start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a running process: %v, want %v", err, context.DeadlineExceeded)
	}
	if err := p.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Wait(labtest.Context(t)); !errors.As(err, new(*exec.ExitError)) {
			t.Errorf("wait for a process that a signal ended: %v, want an exec.ExitError", err)
		}
	}
	if err := p.Signal(unix.SIGUSR1); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to an ended process: %v, want %v", err, os.ErrProcessDone)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop of an ended process: %v", err)
	}
}

func TestStopKillsAtLast(t *testing.T) {
	labtest.Long(t)
	t.Parallel() // It waits for seconds.
	host := newHost(t, labtest.New(t), "h")
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := host.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("stop of a process that ignores SIGTERM: %v", err)
	}
	if running(p.Pid()) {
		t.Errorf("%v still runs", p)
	}
}
