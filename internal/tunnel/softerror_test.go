package tunnel_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/tunnel"
)

// told pings from a to b until want senders in all have heard of an error, and some
// times more. It returns what they heard. Each ping must be answered: what a
// sender hears of does not concern its own packet.
func (n *network) told(t testing.TB, c *netlab.Capture, want int) []icmpError {
	t.Helper()
	const more = 3
	labtest.WaitFor(t, fmt.Sprintf("%d senders to be told", want), func() bool {
		n.mustPing(t)
		return len(icmpErrors(c)) >= want
	})
	for range more {
		n.mustPing(t)
	}
	n.settle(t, c)
	return icmpErrors(c)
}

func (n *network) mustPing(t testing.TB) {
	t.Helper()
	if r := ping(t, n.a, n.b, netlab.PingOptions{Timeout: answered}); r.Received != 1 {
		t.Fatalf("ping: %v", r)
	}
}

// What a router says of the tunnel's packets, later senders hear as 3/1, one for
// each time; and nothing of all else.
func TestT8_E_RouterErrors(t *testing.T) {
	t.Parallel()
	type message struct{ typ, code, word int }
	for name, c := range map[string]struct {
		ttl         uint8
		tell, quiet []message
	}{
		"ttl 64": {
			ttl: 64,
			tell: []message{
				{3, 0, 0}, {3, 1, 0}, {3, 2, 0}, {3, 3, 0}, {3, 9, 0}, {3, 10, 0}, {3, 13, 0}, {3, 15, 0}, {11, 0, 0},
			},
			quiet: []message{
				{3, 4, 1500}, {3, 5, 0}, {3, 16, 0}, {4, 0, 0}, {11, 1, 0}, {12, 0, 0}, {12, 1, 0},
				{5, 1, 0xc0a80601}, // to the gateway that there is
				{0, 0, 0}, {8, 0, 0}, {42, 0, 0},
			},
		},
		"ttl inherit": {tell: []message{{3, 1, 0}}, quiet: []message{{11, 0, 0}, {11, 1, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(cfg *tunnel.Config) { cfg.TTL = c.ttl })
			for _, m := range c.quiet {
				tun01 := capture(t, n.a.host, "tun01")
				n.a.sendICMPErrors(t, n.r1, n.b, 3, m.typ, m.code, m.word)
				n.a.sendICMPErrors(t, n.r1, n.b, 1, 3, 1, 0) // the last to arrive
				if got := n.told(t, tun01, 1); len(got) != 1 {
					t.Errorf("%d/%d: %d senders were told, want none", m.typ, m.code, len(got)-1)
				}
				tun01.Close()
			}
			for i, m := range c.tell {
				tun01 := capture(t, n.a.host, "tun01")
				errors := 1 + i%4
				n.a.sendICMPErrors(t, n.r1, n.b, errors, m.typ, m.code, m.word)
				got := n.told(t, tun01, errors)
				if len(got) != errors {
					t.Errorf("%d/%d: %d senders were told of %d errors", m.typ, m.code, len(got), errors)
				}
				for _, e := range got {
					if e.typ != 3 || e.code != 1 || e.mtu != 0 {
						t.Errorf("%d/%d: a sender was told %v with mtu %d, want 3/1", m.typ, m.code, e, e.mtu)
					}
					e.check(t, outgoing(t, tun01, e))
				}
				tun01.Close()
			}
			n.balance(t)
			n.a.drops(t)
		})
	}
}

// Errors about other packets than the tunnel's do not concern its senders.
func TestE_OfAnotherTunnel(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	tun01 := capture(t, n.a.host, "tun01")
	for _, other := range [][2]*site{
		{n.a, newSite(nil, "192.168.8.102", "172.56.2.101")},
		{newSite(nil, "192.168.6.101", "172.56.1.101"), newSite(nil, "192.168.7.2", "172.56.2.101")},
	} {
		other[0].sendICMPErrors(t, n.r1, other[1], 3, 3, 1, 0)
	}
	n.a.sendICMPErrors(t, n.r1, n.b, 1, 3, 1, 0)
	if got := n.told(t, tun01, 1); len(got) != 1 {
		t.Errorf("%d senders were told of another tunnel's error", len(got)-1)
	}
}

// The same while there is no route to the remote address, and the receiver not
// connected: Linux looks for the tunnel by both addresses (ipip_err).
func TestE_OfAnotherTunnelBeforeTheRoute(t *testing.T) {
	t.Parallel()
	n := across(t)
	route := &netlink.Route{Dst: netlink.NewIPNet(net.IPv4(192, 168, 8, 0)), Gw: net.IPv4(192, 168, 6, 1)}
	route.Dst.Mask = net.CIDRMask(24, 32)
	must(t, n.a.host.Netlink().RouteDel(route))
	n.a.start(t, config(n.a, n.b))
	n.b.start(t, config(n.b, n.a))
	tun01 := capture(t, n.a.host, "tun01")
	n.a.sendICMPErrors(t, n.r1, newSite(nil, "192.168.8.102", "172.56.2.101"), 5, 3, 1, 0)
	inject(t, n.b.host, "tun01", echoReply(n.b.inner, n.a.inner, 100)) // comes after them
	labtest.WaitFor(t, "a packet from the other end", func() bool { return n.a.tunnel.Stats().RX.Packets > 0 })

	must(t, n.a.host.Netlink().RouteAdd(route))
	labtest.WaitFor(t, "the tunnel to work", func() bool {
		return ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered}).Received > 0
	})
	n.settle(t, tun01)
	if got := len(icmpErrors(tun01)); got > 0 {
		t.Errorf("%d senders were told of another tunnel's errors", got)
	}
	n.balance(t)
}

// Real routers: one without a way, one that forbids, and one that a fixed TTL does
// not pass. A local sender that asks for errors gets "no route to host".
func TestT8_RealRouters(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ttl   uint8
		route int // of r1 to b, or 0
	}{
		"unreachable": {route: unix.RTN_UNREACHABLE},
		"prohibit":    {route: unix.RTN_PROHIBIT},
		"ttl too low": {ttl: 1},
		"far too low": {ttl: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			cfg := config(n.a, n.b)
			cfg.TTL = c.ttl
			n.a.start(t, cfg)
			n.b.start(t, config(n.b, n.a))
			if c.route != 0 {
				dst := netlink.NewIPNet(n.b.outer.AsSlice())
				must(t, n.r1.Netlink().RouteAdd(&netlink.Route{Dst: dst, Type: c.route}))
			}
			tun01 := capture(t, n.a.host, "tun01")
			p := newProber(t, n.a, n.b)
			p.control(t, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1) })
			labtest.WaitFor(t, "the sender to hear of it", func() bool {
				err := p.send(100)
				if err != nil && !errors.Is(err, unix.EHOSTUNREACH) {
					t.Fatal(err)
				}
				return err != nil
			})
			e := waitICMPError(t, tun01, func(icmpError) bool { return true })
			if e.typ != 3 || e.code != 1 {
				t.Errorf("the sender hears %v, want 3/1", e)
			}
			e.check(t, outgoing(t, tun01, e))
			n.balance(t)
			n.a.drops(t)
		})
	}
}

// With --icmp rfc2003 the sender of the packet that an error quotes hears at once,
// and no later one in its place (RFC 2003 §4).
func TestE_RelayedAtOnce(t *testing.T) {
	t.Parallel()
	for name, ttl := range map[string]uint8{"ttl 64": 64, "ttl inherit": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(c *tunnel.Config) { c.TTL, c.RelayICMP = ttl, true })
			tun01 := capture(t, n.a.host, "tun01")
			var want []string
			for _, m := range []struct {
				typ, code int
				want      string
			}{
				{3, 0, "3/0"}, {3, 1, "3/1"}, {3, 2, "3/1"}, {3, 9, "3/1"}, {3, 10, "3/1"}, {3, 13, "3/1"}, {11, 0, "3/1"},
				{3, 3, ""}, {3, 5, ""}, {4, 0, ""}, {11, 1, ""}, {12, 0, ""}, {0, 0, ""},
			} {
				if n.a.sendICMPErrors(t, n.r1, n.b, 1, m.typ, m.code, 0); m.want != "" {
					want = append(want, m.want)
				}
			}
			n.softErrorWaits(t)
			n.settle(t, tun01)
			n.settle(t, tun01)
			var got []string
			for _, e := range icmpErrors(tun01) {
				got = append(got, e.String())
				quoted := echoReply(n.a.inner, n.b.inner, 64)
				if !e.sound || e.src != n.b.inner.String() || e.dst != n.a.inner.String() || !bytes.Equal(e.quote, quoted[:28]) {
					t.Errorf("a sender hears %+v", e)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("senders hear %v, want %v", got, want)
			}

			// One packet is enough.
			dst := netlink.NewIPNet(n.b.outer.AsSlice())
			must(t, n.r1.Netlink().RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}))
			p := newProber(t, n.a, n.b)
			before := len(icmpErrors(tun01))
			must(t, p.send(100))
			labtest.WaitFor(t, "the sender to hear of it", func() bool { return len(icmpErrors(tun01)) > before })
			e := icmpErrors(tun01)[before]
			if e.typ != 3 || e.code != 1 {
				t.Errorf("the sender hears %v, want 3/1", e)
			}
			e.check(t, outgoing(t, tun01, e))
			n.balance(t)
		})
	}
}
