package netlab_test

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// startKeepalive starts goipip with a keepalive.
func (e end) startKeepalive(t *testing.T) *background {
	t.Helper()
	options := []string{"-keepalive", "200ms", "-keepalive-retries", "3", "-address", e.inner, "-peer", e.peer}
	e.inner = ""
	return e.start(t, options...)
}

// carrier waits until a link has a carrier, or none.
func (e end) carrier(t *testing.T, want bool) {
	t.Helper()
	labtest.WaitFor(t, "the carrier of "+e.dev, func() bool {
		link, err := e.host.Netlink().LinkByName(e.dev)
		return err == nil && link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 == want
	})
}

// follows fails the test unless the carrier of e's link goes as the peer does, and each change is said once.
func (e end) follows(t *testing.T, log *background, cut, mend func()) {
	t.Helper()
	log.out.waitFor(t, "tunnel is up")
	e.carrier(t, true)
	cut()
	e.carrier(t, false)
	mend()
	e.carrier(t, true)
	log.out.waitFor(t, "carrier is on again")
	for _, text := range []string{"carrier is off", "carrier is on again"} {
		if n := strings.Count(log.out.String(), text); n != 1 {
			t.Errorf("%d lines that the %s", n, text)
		}
	}
}

// The peers have no keepalive and strict source checks. They need an address, and a kernel.
func TestKeepalive_Peers(t *testing.T) {
	t.Parallel()
	for name, startPeer := range map[string]func(*testing.T, *tunnelLab){
		"goipip": func(t *testing.T, l *tunnelLab) { l.end02.start(t) },
		"naive": func(t *testing.T, l *tunnelLab) {
			e := l.end02
			start(t, e.host, exec.Command(labtest.Build(t, "goipip/bench/naive"), "-name", e.dev, "-local", e.local, "-remote", e.remote))
			labtest.WaitFor(t, "the link of naive", func() bool { return hasLink(e.host, e.dev) })
			if err := e.host.SetUp(e.dev); err != nil {
				t.Fatal(err)
			}
			e.address(t)
		},
		"kernel": func(t *testing.T, l *tunnelLab) {
			labtest.Need(t, "bpf")
			attachKernel(t, l)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			for _, host := range []*netlab.Host{l.ns01, l.ns02} {
				if err := errors.Join(host.Sysctl("net.ipv4.conf.all.rp_filter", "1"), host.Sysctl("net.ipv4.conf.default.rp_filter", "1")); err != nil {
					t.Fatal(err)
				}
			}
			startPeer(t, l)
			tun01 := l.end01.startKeepalive(t)
			l.end01.follows(t, tun01, func() { run(t, l.router, "ip link set veth02_p down") }, func() { run(t, l.router, "ip link set veth02_p up") })
			l.ping(t, netlab.PingOptions{})
		})
	}
}

// attachKernel makes the kernel of ns02 the far end.
func attachKernel(t *testing.T, l *tunnelLab) {
	t.Helper()
	if err := l.ns02.AttachIPIP(netlab.KernelIPIP{
		Dev:   "veth02",
		Local: netip.MustParseAddr(l.end02.local), Remote: netip.MustParseAddr(l.end02.remote), InnerLocal: netip.MustParseAddr(l.end02.inner), InnerRemote: netip.MustParseAddr(l.end02.peer),
	}); err != nil {
		t.Fatal(err)
	}
}
