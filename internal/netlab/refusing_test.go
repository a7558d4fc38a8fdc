package netlab_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// startRefusing starts goipip as in a kernel that refuses something.
func (e end) startRefusing(t *testing.T, r netlab.RefusedCall, options ...string) *background {
	t.Helper()
	return e.startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) { return e.host.StartRefusing(cmd, r) }, options...)
}

// A kernel that does not take merged packets any more is noticed, and told of once: they
// are delivered one by one, those that it refused too.
func TestUnmerged(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	// The parts of two packets, and a header before them, still pass.
	merged := netlab.RefusedCall{Number: unix.SYS_WRITEV, Arg: 2, Unless: bpf.JumpLessOrEqual, Value: 3, Errno: unix.EINVAL}
	for _, options := range []string{"", "--queues 4", "--tx raw"} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			l.end01.start(t, strings.Fields(options)...)
			tun02 := l.end02.startRefusing(t, merged, strings.Fields(options)...)
			tun02.hasNoComplaint(t)
			l.transfer(t, transferLen)
			tun02.out.waitFor(t, "refuses merged packets")
			l.carriesTCP(t)
			l.carriesUDP(t)
			l.pingBothWays(t)
			if log := tun02.out.String(); strings.Count(log, "level=WARN") != 1 || strings.Contains(log, "level=ERROR") {
				t.Errorf("the tunnel complains:\n%s", log)
			}
			link, err := l.ns02.Netlink().LinkByName("tun02")
			if err != nil {
				t.Fatal(err)
			}
			if s := link.Attrs().Statistics; s.RxErrors+s.RxDropped > 0 {
				t.Errorf("the link has lost packets: %+v", s)
			}
		})
	}
}

// A kernel may lack what the packet road needs, or what could stand in its way.
func TestSmallKernels(t *testing.T) {
	t.Parallel()
	without := func(arg, value uint32, errno unix.Errno) netlab.RefusedCall {
		return netlab.RefusedCall{Number: unix.SYS_SOCKET, Arg: arg, Unless: bpf.JumpNotEqual, Value: value, Errno: errno}
	}
	packets := without(0, unix.AF_PACKET, unix.EAFNOSUPPORT)
	for name, c := range map[string]struct {
		refused netlab.RefusedCall
		road    string
	}{
		"no packet sockets": {packets, ""},
		"none permitted":    {without(0, unix.AF_PACKET, unix.EPERM), ""},
		"no netfilter":      {without(2, unix.NETLINK_NETFILTER, unix.EPROTONOSUPPORT), "packet"},
		"no IPsec":          {without(2, unix.NETLINK_XFRM, unix.EPROTONOSUPPORT), "packet"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			l.end02.start(t)
			tun01 := l.end01.startRefusing(t, c.refused, "--log-level", "debug")
			l.pingBothWays(t)
			if c.road != "" {
				tun01.out.waitFor(t, "sending by "+c.road+" socket")
			}
			l.carriesTCP(t)
			l.pingBothWays(t)
			tun01.hasNoComplaint(t)
			if log := tun01.out.String(); c.road == "" && strings.Contains(log, "sending by packet socket") {
				t.Errorf("the tunnel says:\n%s", log)
			}
		})
	}
	t.Run("--tx packet", func(t *testing.T) {
		t.Parallel()
		l := newTunnelLab(t)
		g := startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) { return l.ns01.StartRefusing(cmd, packets) },
			goipipCommand(t, "-local", l.end01.local, "-remote", l.end01.remote, "--tx", "packet"))
		if err := g.Wait(labtest.Context(t)); !errors.As(err, new(*exec.ExitError)) {
			t.Errorf("goipip by the packet road without packet sockets: %v, want an exit code", err)
		}
		mentions(t, "its end", g.out.String(), "packet socket", "address family not supported")
	})
}
