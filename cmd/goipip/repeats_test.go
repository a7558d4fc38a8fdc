//go:build linux

package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"goipip/internal/logqueue"
	"goipip/internal/netlab/labtest"
)

// A daemon's log does not repeat itself without end, and says how much it left out.
func TestLogRepeats(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(labtest.BuildGoipip(t), "-name", "tun01", "-local", "127.0.0.1", "-remote", "127.0.0.2")
	cmd.Stderr = log
	p, err := c.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "tun01", func() bool { return strings.Contains(c.types(t, "goipip tunnel show"), "tun01") })
	const over = 3
	begun := time.Now()
	for i := range logqueue.Burst + over {
		c.types(t, fmt.Sprint("goipip tunnel change tun01 ttl ", i+1))
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	said := string(b)
	logged, suppressed := strings.Count(said, `msg="tunnel has changed"`), 0
	_, end, found := strings.Cut(said, `msg="log lines were suppressed" tunnel=tun01 line="tunnel has changed" suppressed=`)
	if found {
		_, err = fmt.Sscan(end, &suppressed)
	}
	slow := time.Since(begun) >= logqueue.Interval // then a new interval begins on the way
	if err != nil || logged+suppressed != logqueue.Burst+over || logged != logqueue.Burst && !slow {
		t.Errorf("%d changes are logged as\n%s", logqueue.Burst+over, said)
	}
}
