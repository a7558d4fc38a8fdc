package netlab_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// warns fails the test unless the process has said so far, in one warning, what is wrong with address.
func (b *background) warns(t *testing.T, address string) {
	t.Helper()
	b.out.waitFor(t, "level=WARN")
	log := b.out.String()
	if n := strings.Count(log, "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, log)
	}
	mentions(t, "the warning", log, address)
}

func TestNoRouteAtStart(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end02.start(t)
	route := netlink.Route{Dst: netlink.NewIPNet(netip.MustParseAddr("192.168.8.0").AsSlice())}
	route.Dst.Mask[3] = 0
	if err := l.ns01.Netlink().RouteDel(&route); err != nil {
		t.Fatal(err)
	}

	tun01 := l.end01.start(t)
	tun01.warns(t, "192.168.8.101")
	link, err := l.ns01.Netlink().LinkByName("tun01")
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().MTU != 1480 {
		t.Errorf("mtu is %d without a route, want 1480 (O2)", link.Attrs().MTU)
	}
	l.dead(t, netlab.PingOptions{})

	if err := l.ns01.AddRoute("192.168.8.0/24", "192.168.6.1"); err != nil {
		t.Fatal(err)
	}
	l.pingBothWays(t)
	l.carriesTCP(t)
}

func TestNoLocalAddressAtStart(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end02.start(t)
	if err := l.ns02.AddRoute("192.168.66.0/24", "192.168.8.1"); err != nil {
		t.Fatal(err)
	}
	if err := l.router.AddRoute("192.168.66.0/24", "veth01_p"); err != nil {
		t.Fatal(err)
	}
	floating01, floating02 := l.end01, l.end02
	floating01.dev, floating01.local, floating01.inner, floating01.peer = "tun66", "192.168.66.1", "172.66.1.101", "172.66.2.101"
	floating02.dev, floating02.remote, floating02.inner, floating02.peer = "tun66", "192.168.66.1", "172.66.2.101", "172.66.1.101"
	p := path{l.ns01, l.ns02, netip.MustParseAddr(floating01.inner), netip.MustParseAddr(floating02.inner)}
	floating02.start(t)

	tun66 := floating01.start(t)
	tun66.warns(t, "192.168.66.1")
	p.dead(t, netlab.PingOptions{})

	if err := l.ns01.AddAddr("veth01", "192.168.66.1/32"); err != nil {
		t.Fatal(err)
	}
	p.revives(t)
	p.pingBothWays(t)
	p.carriesTCP(t)
}

// TestAddressLeaves takes the local address and the route away from a tunnel that works, and gives them back.
func TestAddressLeaves(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	l := newTunnelLab(t)
	l.start(t)
	for range 2 {
		l.pingBothWays(t)
		run(t, l.ns01, "ip addr del 192.168.6.101/24 dev veth01") // The route goes with it.
		l.dead(t, netlab.PingOptions{})
		l.reverse().dead(t, netlab.PingOptions{})
		run(t, l.ns01, "ip addr add 192.168.6.101/24 dev veth01")
		run(t, l.ns01, "ip route add 192.168.8.0/24 via 192.168.6.1")
		l.revives(t)
	}
	l.pingBothWays(t)
}

// third is a further host of Lab 2, ns03 with 192.168.9.101, behind a port of the router.
func (l *tunnelLab) third(t *testing.T, lab *netlab.Lab) *netlab.Host {
	t.Helper()
	ns03 := newHost(t, lab, "ns03")
	if err := errors.Join(
		lab.Veth(ns03, "veth03", l.router, "veth03_p"),
		ns03.AddAddr("veth03", "192.168.9.101/24"),
		l.router.AddAddr("veth03_p", "192.168.9.1/24"),
		ns03.AddRoute("192.168.0.0/16", "192.168.9.1"),
		l.ns01.AddRoute("192.168.9.0/24", "192.168.6.1"),
		l.ns02.AddRoute("192.168.9.0/24", "192.168.8.1"),
	); err != nil {
		t.Fatal(err)
	}
	return ns03
}

// TestTwoTunnels has two tunnels on one host, to two remote ones.
func TestTwoTunnels(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	l := newTunnelLabIn(t, lab)
	ns03 := l.third(t, lab)
	end03 := end{ns03, "tun03", "192.168.9.101", "192.168.6.101", "172.57.2.101", "172.57.1.101"}
	to03 := end{l.ns01, "tun13", "192.168.6.101", "192.168.9.101", "172.57.1.101", "172.57.2.101"}
	p := path{l.ns01, ns03, netip.MustParseAddr(to03.inner), netip.MustParseAddr(end03.inner)}
	_, tun02 := l.start(t)
	end03.start(t)
	tun13 := to03.start(t)

	onTun13 := startCapture(t, l.ns01, "tun13")
	for _, p := range []path{l.path, p} {
		p.pingBothWays(t)
		p.carriesTCP(t)
		p.reverse().datagrams(t, 500, maxEcho)
	}
	for _, c := range onTun13.Packets() {
		if strings.Contains(c.String(), "172.56.") {
			t.Fatalf("a packet of the other tunnel comes out of tun13: %v", c)
		}
	}

	// The end of one leaves the other alone.
	if err := to03.host.DeleteLink(to03.dev); err != nil {
		t.Fatal(err)
	}
	if err := tun13.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	l.pingBothWays(t)
	l.carriesTCP(t)
	tun02.hasNoComplaint(t)
}

// The kernel refuses a second tunnel with the ends of one that exists, EEXIST, "File exists".
func TestO7_SamePair(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.start(t)
	l.pingBothWays(t)
	second := goipipCommand(t, "-name", "second", "-local", l.end01.local, "-remote", l.end01.remote)
	g := start(t, l.ns01, second)
	labtest.WaitFor(t, "a decision about the second tunnel", func() bool {
		select {
		case <-g.ended:
			return true
		default:
			return isUp(l.ns01, "second")
		}
	})
	if isUp(l.ns01, "second") {
		t.Errorf("a second tunnel between %s and %s starts", l.end01.local, l.end01.remote)
	} else if out := g.out.String(); strings.Count(out, "\n") != 1 || !strings.Contains(out, l.end01.remote) {
		t.Errorf("a second tunnel is refused with %q, want one line that names the remote address", out)
	}
	// In either case the first one works, and each packet arrives once.
	l.pingBothWays(t)
	l.ping(t, netlab.PingOptions{Count: 20})
	l.datagrams(t, 500, maxEcho)
	l.reverse().datagrams(t, 500, maxEcho)
}
