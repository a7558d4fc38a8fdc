package rawsock_test

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
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
	p := newProber(t, l.left)
	check := func(cfg config, want int) {
		t.Helper()
		if mtu, err := p.mtu(cfg); err != nil || mtu != want {
			t.Errorf("MTU of %+v = %d, %v, want %d", cfg, mtu, err, want)
		}
	}
	with := func(change func(*config)) config {
		cfg := l.cfg
		change(&cfg)
		return cfg
	}
	check(l.cfg, 1500)

	marked := with(func(c *config) { c.Mark = 7 })
	rule(100, 1401, func(r *netlink.Rule) { r.Mark = 7 })
	check(l.cfg, 1500)
	check(marked, 1401)
	check(l.cfg, 1500)
	withTOS := with(func(c *config) { c.TOS = 0x10 })
	rule(101, 1402, func(r *netlink.Rule) { r.Tos = 0x10 })
	check(l.cfg, 1500)
	check(withTOS, 1402)
	byDevice := with(func(c *config) { c.Device = deviceIndex(t, l.left, "eth1") })
	check(byDevice, 1200)
	check(l.cfg, 1500)
	check(marked, 1401)

	rule(102, 1403, func(r *netlink.Rule) { r.IPProto = packet.ProtoIPIP })
	check(l.cfg, 1403)

	if _, err := p.mtu(with(func(c *config) { c.Device = noSuchDevice })); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("MTU by no device: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
	// EINVAL from older kernels than 6.18.
	_, err = p.mtu(with(func(c *config) { c.Local = thirdAddr }))
	if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("MTU from an address that is not there: %v, want %v", err, unix.ENETUNREACH)
	}
	check(l.cfg, 1403)

	must(t, p.Close())
	if _, err := p.mtu(l.cfg); !errors.Is(err, os.ErrClosed) {
		t.Errorf("MTU after Close: %v, want %v", err, os.ErrClosed)
	}
}

// prober is a Prober that asks in the network namespace of a host.
type prober struct {
	*rawsock.Prober
	h *netlab.Host
}

func newProber(t *testing.T, h *netlab.Host) prober {
	t.Helper()
	p := prober{h: h}
	must(t, h.Do(func() (err error) {
		p.Prober, err = rawsock.NewProber()
		return err
	}))
	t.Cleanup(func() { p.Close() })
	return p
}

func (p prober) mtu(cfg config) (mtu int, err error) {
	route := cfg.route()
	route.Local = cfg.Local
	err = p.h.Do(func() (err error) {
		mtu, err = p.MTU(route)
		return err
	})
	return mtu, err
}

// A socket of another network would answer for that one.
func TestPathMTU_OtherNamespace(t *testing.T) {
	left, right := newPair(t)
	p := newProber(t, left)
	p.h = right
	if mtu, err := p.mtu(leftEnd); err != nil || mtu != 1500 {
		t.Errorf("MTU = %d, %v, want 1500", mtu, err)
	}
}

// An MTU from a router counts, and a route may go away and come again.
func TestPathMTUChanges(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", far.String()+"/32"))
	cfg := config{Local: leftAddr, Remote: far}
	newReceiver(t, left, cfg) // by which the kernel takes the error for its own
	p := newProber(t, left)
	if mtu, err := p.mtu(cfg); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("MTU without a route = %d, %v, want %v", mtu, err, unix.ENETUNREACH)
	}
	for range 2 {
		must(t, left.AddRoute(far.String()+"/32", rightAddr.String()))
		if mtu, err := p.mtu(cfg); err != nil || mtu != 1500 {
			t.Errorf("MTU = %d, %v, want 1500", mtu, err)
		}
		icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 4, mtu: 1000, about: cfg}.send(t, left, right)
		if mtu, err := p.mtu(cfg); err != nil || mtu != 1000 {
			t.Errorf("MTU after 3/4 = %d, %v, want 1000", mtu, err)
		}
		must(t, left.Netlink().RouteDel(&netlink.Route{Dst: netlink.NewIPNet(far.AsSlice())}))
		if mtu, err := p.mtu(cfg); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("MTU without the route = %d, %v, want %v", mtu, err, unix.ENETUNREACH)
		}
	}
}
