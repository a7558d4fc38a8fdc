package rawsock_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// newGuard opens a guard on h, and closes it when the test ends.
func newGuard(t testing.TB, h *netlab.Host, cfg rawsock.Config) *rawsock.Guard {
	t.Helper()
	var g *rawsock.Guard
	must(t, h.Do(func() (err error) {
		g, err = rawsock.NewGuard(cfg)
		return err
	}))
	t.Cleanup(func() { g.Close() })
	return g
}

func newConnectedGuard(t testing.TB, h *netlab.Host, cfg rawsock.Config) *rawsock.Guard {
	t.Helper()
	g := newGuard(t, h, cfg)
	must(t, g.Connect())
	return g
}

// A receiver whose buffer is full has the kernel answer that there is no such protocol
// here; with a guard it does not.
func TestHazard11_OverloadIsSilent(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprint("guarded=", guarded), func(t *testing.T) {
			left, right := newPair(t)
			r := newConnected(t, right, rightEnd)
			if guarded {
				newConnectedGuard(t, right, rightEnd)
				// With ICMP errors about its packets, too.
				icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 3, about: rightEnd}.sendMany(t, right, left, 1000)
			}
			before := icmpSent(t, right)
			flood(t, newSender(t, left, leftEnd), 12000)
			if r.Drops() == 0 {
				t.Fatal("no overload: the test tests nothing")
			}
			if sent := icmpSent(t, right) - before; guarded && sent != 0 || !guarded && sent == 0 {
				t.Errorf("the kernel has sent %d ICMP errors", sent)
			}
		})
	}
}

// A guard keeps no packet, connected or not, from whoever, whenever it came.
func TestHazard11_GuardKeepsNothing(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	flooded := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			for range 8 {
				s.Add(outer(leftEnd, 10), make([]byte, 10))
			}
			err = s.Flush()
		}
		flooded <- err
	}()
	for i := range 300 {
		g := newGuard(t, right, rightEnd)
		if i%2 == 0 {
			must(t, g.Connect())
		}
		if g.Poll()&unix.POLLIN != 0 {
			t.Error("the guard has a packet")
		}
		must(t, g.Close())
	}
	must(t, s.Close())
	if err := labtest.Within(t, "the end of the flood", flooded); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

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
	check := func(g *rawsock.Guard, want int) {
		t.Helper()
		if mtu, err := g.PathMTU(); err != nil || mtu != want {
			t.Errorf("PathMTU = %d, %v, want %d", mtu, err, want)
		}
	}
	with := func(change func(*rawsock.Config)) *rawsock.Guard {
		t.Helper()
		cfg := l.cfg
		change(&cfg)
		return newGuard(t, l.left, cfg)
	}
	g := newGuard(t, l.left, l.cfg)
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
	g := newGuard(t, left, cfg)
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

func TestGuard_SetDevice(t *testing.T) {
	left, _ := newPair(t)
	g := newConnectedGuard(t, left, leftEnd)
	if err := g.SetDevice(noSuchDevice); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("SetDevice to none: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
}

func TestGuard_Closed(t *testing.T) {
	left, _ := newPair(t)
	for _, connected := range []bool{false, true} {
		g := newGuard(t, left, leftEnd)
		if connected {
			must(t, g.Connect())
		}
		must(t, g.Close())
		if err := g.Connect(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Connect: %v, want %v", err, os.ErrClosed)
		}
		if err := g.Close(); err != nil {
			t.Errorf("another Close: %v", err)
		}
	}
}
