package tunnel_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
)

// In Linux an ICMP error lowers the MTU of the path over the tunnel's device
// (ipip_err, ipv4_update_pmtu with t->parms.link). A socket without a device lowers
// that of the route which comes first.

// acrossDevice returns a network whose tunnel leaves a by --dev eth1, while the
// route by eth0 comes first.
func acrossDevice(t testing.TB) *network {
	t.Helper()
	n := across(t)
	n.secondUplink(t)
	prefix, err := netlink.ParseIPNet("192.168.8.0/24")
	must(t, err)
	eth1, err := n.a.host.Netlink().LinkByName("eth1")
	must(t, err, n.a.host.Netlink().RouteAdd(&netlink.Route{
		Dst: prefix, Gw: []byte{192, 168, 9, 1}, LinkIndex: eth1.Attrs().Index, Priority: 100,
	}))
	n.a.outer = secondUplink
	cfg := config(n.a, n.b)
	cfg.Device = "eth1"
	n.a.start(t, cfg)
	n.b.start(t, config(n.b, n.a))
	ping(t, n.a, n.b, netlab.PingOptions{})
	return n
}

func TestO6_T7_PathOfTheDevice(t *testing.T) {
	t.Parallel()
	n := acrossDevice(t)
	other, wire := capture(t, n.r1, "a0"), capture(t, n.r1, "a1")
	for _, mtu := range []int{1400, 600} {
		n.shrink(t, mtu)
		p := newProber(t, n.a, n.b)
		p.learns(t, p.mtu(t), mtu-20)
		p.arrives(t, mtu-20)
	}
	n.settle(t, wire)
	if got := n.a.outerPackets(other); len(got) > 0 {
		t.Errorf("on eth0 are %d packets", len(got))
	}
	n.balance(t)
	n.a.drops(t, stats.TooBig)
}

// A router that tells of more than was known is not believed (__ip_rt_update_pmtu
// in net/ipv4/route.c), with a device and without.
func TestT7_NoIncrease(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *network{
		"dev": acrossDevice,
		"no dev": func(t testing.TB) *network {
			n := across(t)
			n.start(t, nil)
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := start(t)
			n.shorten(t)
			tun01 := capture(t, n.a.host, "tun01")
			n.a.sendICMPErrors(t, n.r1, n.b, 1, 3, 4, 1450)
			n.softErrorWaits(t)
			n.settle(t, tun01)
			p := n.tooBig()[:1420]
			inject(t, n.a.host, "tun01", p)
			n.settle(t, tun01)
			if got := icmpErrors(tun01); len(got) != 1 || got[0].mtu != 1380 {
				t.Errorf("a router says 1450 of a path of 1400 bytes: the sender of 1420 hears %+v", got)
			}
			n.balance(t)
		})
	}
}

// Below net.ipv4.route.min_pmtu the routers are to fragment, as in
// TestT7_BelowTheMinimum.
func TestO6_T7_BelowTheMinimum(t *testing.T) {
	t.Parallel()
	n := acrossDevice(t)
	n.shrink(t, 500)
	ctx, cancel := context.WithTimeout(labtest.Context(t), 10*time.Second)
	defer cancel()
	for _, end := range n.directions() {
		if _, err := netlab.Transfer(ctx, end[0].host, end[1].host, netip.AddrPortFrom(end[1].inner, 0), 1<<18); err != nil {
			t.Error(err)
		}
	}
	n.balance(t)
}

// What the tunnel remembers of a path with a device ends when the kernel's memory
// would, and has the kernel's bounds, both of the tunnel's own namespace.
func TestO6_T7_Expires(t *testing.T) {
	t.Parallel()
	acrossDevice(t).expires(t)
}

func TestO6_T7_Minimum(t *testing.T) {
	t.Parallel()
	n := acrossDevice(t)
	must(t, n.a.host.Sysctl("net.ipv4.route.min_pmtu", "300"))
	n.shrink(t, 400)
	wire := capture(t, n.r1, "a1")
	p := newProber(t, n.a, n.b)
	p.learns(t, 1480, 380)
	p.arrives(t, 380)
	n.settle(t, wire)
	for _, outer := range n.a.outerPackets(wire) {
		if !outer.DF() {
			t.Errorf("without DF is % x", outer[:20])
		}
	}
	n.balance(t)
}

// It is of the way that it was reported of, and not of another.
func TestO6_T7_AnotherWay(t *testing.T) {
	t.Parallel()
	n := acrossDevice(t)
	n.shrink(t, 1400)
	p := newProber(t, n.a, n.b)
	p.learns(t, 1480, 1380)
	must(t, n.r1.AddAddr("a1", "192.168.9.2/24"))
	prefix, err := netlink.ParseIPNet("192.168.8.0/24")
	must(t, err)
	eth1, err := n.a.host.Netlink().LinkByName("eth1")
	must(t, err, n.a.host.Netlink().RouteReplace(&netlink.Route{
		Dst: prefix, Gw: []byte{192, 168, 9, 2}, LinkIndex: eth1.Attrs().Index, Priority: 100,
	}))
	n.shrink(t, 1500)
	labtest.WaitFor(t, "the tunnel to know the other way", func() bool { return n.a.tunnel.State().PathMTU == 1500 })
	must(t, n.a.host.Sysctl("net.ipv4.route.flush", "1")) // of the inner path
	n.grows(t, p)
	n.balance(t)
}
