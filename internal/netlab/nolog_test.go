package netlab_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/logqueue"
	"goipip/internal/netlab"
)

// A log that leads nowhere stops no tunnel.
func TestHazard1_NoLog(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ shell, options string }{
		"standard error closed": {`exec "$@" 2>&-`, ""},
		"no journal":            {`[ ! -d /run/systemd ] || mount -t tmpfs tmpfs /run/systemd; exec "$@"`, "--log-format journal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			l.end02.start(t)
			tun01 := l.end01.startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) {
				in := exec.Command("unshare", append([]string{"--mount", "sh", "-c", c.shell, "sh"}, cmd.Args...)...)
				in.Env = cmd.Env
				return l.ns01.Start(in)
			}, strings.Fields(c.options)...)
			l.sendLogged(t)
			l.pingBothWays(t)
			tun01.exits(t, l.end01, func() error { return tun01.Signal(unix.SIGTERM) })
		})
	}
}

// A flood of packets, about each of which there is something to log, comes to a few lines.
func TestHazard1_LoggedFlood(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01 := l.end01.start(t)
	begun := time.Now()
	const about = "non-ECT inner packet"
	for range 5 {
		l.sendLogged(t)
	}
	tun01.out.waitFor(t, about)
	tun01.counts(t)
	intervals := 1 + int(time.Since(begun)/logqueue.Interval)
	if n := strings.Count(tun01.out.String(), `msg="`+about); n > intervals*logqueue.Burst {
		t.Errorf("%d packets come to %d lines, want %d at most", 5*loggedPackets, n, intervals*logqueue.Burst)
	}
}
