package rawsock_test

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// The path MTU is that of a packet of the tunnel: by protocol, mark, TOS and device, as
// routes are now, and as routers have said.
func TestPathMTU(t *testing.T) {
	l := newTwoLinks(t)
	must(t, l.left.SetMTU("eth1", 1200))
	prefix, err := netlink.ParseIPNet(l.cfg.Remote.String() + "/32")
	must(t, err)
	rule := func(table, mtu int, change func(*netlink.Rule)) {
		t.Helper()
		must(t, l.left.Netlink().RouteAdd(&netlink.Route{Dst: prefix, Gw: []byte{10, 0, 0, 2}, Table: table, MTU: mtu}))
		r := netlink.NewRule()
		r.Table, r.Priority, r.Family = table, table, netlink.FAMILY_V4
		change(r)
		must(t, l.left.Netlink().RuleAdd(r))
	}
	check := func(g *rawsock.Receiver, want int) {
		t.Helper()
		if mtu, err := g.PathMTU(); err != nil || mtu != want {
			t.Errorf("PathMTU = %d, %v, want %d", mtu, err, want)
		}
	}
	with := func(change func(*rawsock.Config)) *rawsock.Receiver {
		t.Helper()
		cfg := l.cfg
		change(&cfg)
		return newReceiver(t, l.left, cfg)
	}
	g := newReceiver(t, l.left, l.cfg)
	check(g, 1500)

	rule(100, 1401, func(r *netlink.Rule) { r.Mark = 7 })
	check(g, 1500)
	check(with(func(c *rawsock.Config) { c.Mark = 7 }), 1401)
	rule(101, 1402, func(r *netlink.Rule) { r.Tos = 0x10 })
	check(g, 1500)
	check(with(func(c *rawsock.Config) { c.TOS = 0x10 }), 1402)
	byDevice := with(func(c *rawsock.Config) { c.Device = deviceIndex(t, l.left, "eth1") })
	check(byDevice, 1200)
	must(t, byDevice.SetDevice(0))
	check(byDevice, 1500)
	must(t, byDevice.SetDevice(deviceIndex(t, l.left, "eth1")))
	check(byDevice, 1200)

	rule(102, 1403, func(r *netlink.Rule) { r.IPProto = packet.ProtoIPIP })
	check(g, 1403)

	must(t, g.Close())
	if _, err := g.PathMTU(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("PathMTU after Close: %v, want %v", err, os.ErrClosed)
	}
}

// A router's word counts for PathMTU, and a route that goes away and comes again.
func TestPathMTUChanges(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", far.String()+"/32"))
	cfg := rawsock.Config{Local: leftAddr, Remote: far}
	g := newReceiver(t, left, cfg)
	if mtu, err := g.PathMTU(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("PathMTU without a route = %d, %v, want %v", mtu, err, unix.ENETUNREACH)
	}
	for range 2 {
		must(t, left.AddRoute(far.String()+"/32", rightAddr.String()))
		if mtu, err := g.PathMTU(); err != nil || mtu != 1500 {
			t.Errorf("PathMTU = %d, %v, want 1500", mtu, err)
		}
		icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 4, mtu: 1000, about: cfg}.send(t, left, right)
		if mtu, err := g.PathMTU(); err != nil || mtu != 1000 {
			t.Errorf("PathMTU after 3/4 = %d, %v, want 1000", mtu, err)
		}
		must(t, left.Netlink().RouteDel(&netlink.Route{Dst: netlink.NewIPNet(far.AsSlice())}))
		if mtu, err := g.PathMTU(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("PathMTU without the route = %d, %v, want %v", mtu, err, unix.ENETUNREACH)
		}
	}
}
