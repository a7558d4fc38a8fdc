package netlab_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// programs returns how many programs of tcx are on a device.
func programs(t *testing.T, h *netlab.Host, dev string, at ebpf.AttachType) (n int) {
	t.Helper()
	l, err := h.Netlink().LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(func() error {
		found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
		if err == nil {
			n = len(found.Programs)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// A process that is killed under load leaves nothing of its fast path behind, and another one
// goes on in its place.
func TestFast_Killed(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "bpf")
	l := newTunnelLab(t)
	l.end02.start(t, "--fast-path", "on")
	for range 2 {
		tun01, err := l.ns01.Start(goipipCommand(t, "-name", l.end01.dev, "-local", l.end01.local, "-remote", l.end01.remote, "--fast-path", "on"))
		if err != nil {
			t.Fatal(err)
		}
		labtest.WaitFor(t, "the link", func() bool { return isUp(l.ns01, l.end01.dev) })
		l.end01.address(t)
		l.pingBothWays(t) // the next hop is known then
		labtest.WaitFor(t, "the fast path", func() bool { return programs(t, l.ns01, "veth01", ebpf.AttachTCXIngress) == 1 })
		l.transfer(t, transferLen)

		ctx, stop := context.WithCancel(labtest.Context(t))
		var load sync.WaitGroup
		load.Go(func() { _, _ = netlab.Transfer(ctx, l.ns01, l.ns02, netip.AddrPortFrom(l.addrB, 0), 1<<40) })
		before := rxBytes(t, l.ns02, "veth02")
		labtest.WaitFor(t, "load", func() bool { return rxBytes(t, l.ns02, "veth02") > before+100<<20 })
		if err := tun01.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = tun01.Wait(labtest.Context(t))
		labtest.WaitFor(t, "the programs to be gone", func() bool { return programs(t, l.ns01, "veth01", ebpf.AttachTCXIngress) == 0 })
		stop()
		load.Wait()
		labtest.WaitFor(t, "the link to be gone", func() bool { return !hasLink(l.ns01, l.end01.dev) })
	}
}

// rxBytes returns how many bytes a device has received.
func rxBytes(t *testing.T, h *netlab.Host, dev string) uint64 {
	t.Helper()
	l, err := h.Netlink().LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Statistics.RxBytes
}
