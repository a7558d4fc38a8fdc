package tunnel_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// A route to the remote address through the tunnel itself is told once, costs a
// bounded number of packets, and no more than it lasts.
func TestT4_RouteIntoTheTunnel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		into, instead string // destinations of routes: into the tunnel, and of the right one that is gone
	}{
		"host route":    {into: "192.168.8.101/32"},
		"default route": {into: "default", instead: "192.168.8.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			log := n.a.listen()
			n.start(t, nil)
			const warning = "leads into the tunnel itself"
			for turn := range 2 {
				if c.instead != "" {
					n.deleteRoute(t, c.instead)
				}
				must(t, n.a.host.AddRoute(c.into, "tun01"))
				labtest.WaitFor(t, "a warning", func() bool { return log.count(warning) == turn+1 })

				before, took := n.a.tunnel.Stats().TX, n.a.took(t)
				tun01 := capture(t, n.a.host, "tun01")
				const packets = 500
				for range packets {
					inject(t, n.a.host, "tun01", echoReply(stranger, n.b.inner, 100))
				}
				labtest.WaitFor(t, "the packets to leave the link", func() bool { return n.a.took(t) >= took+packets })
				n.a.balance(t)
				after := n.a.tunnel.Stats().TX
				if got := after.Drops[stats.Loop] - before.Drops[stats.Loop]; got != packets || after.Packets != before.Packets {
					t.Errorf("%d packets are dropped as loops of %d, before %+v, after %+v", got, packets, before, after)
				}
				if got := n.a.took(t) - took; got != packets {
					t.Errorf("the link gave %d packets to the tunnel for %d", got, packets)
				}
				if got := icmpErrors(tun01); len(got) > 0 {
					t.Errorf("senders hear %v, want nothing", got)
				}
				tun01.Close()
				if got := n.a.tunnel.MTU(); got != 1480 {
					t.Errorf("the link has the MTU %d, want 1480", got)
				}

				n.deleteRoute(t, c.into)
				if c.instead != "" {
					must(t, n.a.host.AddRoute(c.instead, "192.168.6.1"))
				}
				labtest.WaitFor(t, "the tunnel to work again", func() bool {
					return ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered}).Received > 0
				})
			}
			if got := log.count(warning); got != 2 {
				t.Errorf("%d warnings of two loops:\n%s", got, log)
			}
			n.balance(t)
			n.a.drops(t, stats.Loop)
		})
	}
}

// Until the tunnel has seen the route, each packet goes round once, and no more
// (G4). A packet socket would send them the old way.
func TestT4_FirstPackets(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.Transmit = tunnel.TransmitRaw })
	before, took := n.a.tunnel.Stats().TX, n.a.took(t)
	must(t, n.a.host.AddRoute("192.168.8.101/32", "tun01"))
	const packets = 200
	for range packets {
		inject(t, n.a.host, "tun01", echoReply(stranger, n.b.inner, 100))
	}
	labtest.WaitFor(t, "each packet to be dropped", func() bool {
		return n.a.tunnel.Stats().TX.Drops[stats.Loop]-before.Drops[stats.Loop] >= packets
	})
	n.a.balance(t)
	if got := n.a.took(t) - took; got > 2*packets {
		t.Errorf("the link gave %d packets to the tunnel for %d", got, packets)
	}
	n.a.drops(t, stats.Loop)
}

// deleteRoute deletes a route of a.
func (n *network) deleteRoute(t testing.TB, dst string) {
	t.Helper()
	if dst == "default" {
		dst = "0.0.0.0/0"
	}
	prefix, err := netlink.ParseIPNet(dst)
	must(t, err, n.a.host.Netlink().RouteDel(&netlink.Route{Dst: prefix, Scope: netlink.SCOPE_NOWHERE}))
}

// What came out of the tunnel does not go in again.
func TestG4_Loops(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	wire := capture(t, n.r1, "a0")
	own := echoReply(n.a.outer, n.b.outer, 100)
	own.SetProtocol(packet.ProtoIPIP)
	for name, p := range map[string]packet.IPv4{
		"from the remote address": echoReply(n.b.outer, n.b.inner, 100),
		"this very tunnel":        own,
	} {
		before := n.a.tunnel.Stats().TX.Drops[stats.Loop]
		inject(t, n.a.host, "tun01", p)
		labtest.WaitFor(t, name+" to be dropped", func() bool { return n.a.tunnel.Stats().TX.Drops[stats.Loop] > before })
		n.settle(t, wire)
		n.balance(t)
		if got := n.a.tunnel.Stats().TX.Drops[stats.Loop]; got != before+1 {
			t.Errorf("%s: %d packets are dropped as loops, want %d", name, got, before+1)
		}
	}
	for _, outer := range n.a.outerPackets(wire) {
		if len(outer.Payload()) == 100 {
			t.Errorf("on the wire is % x", outer)
		}
	}
	n.a.drops(t, stats.Loop)
}
