package tunnel_test

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// byTOS adds a way from a to b by eth1 for outer packets of a TOS, and returns its
// routing table.
func (n *network) byTOS(t testing.TB, tos uint) (table int) {
	t.Helper()
	const policy = 100
	n.secondUplink(t)
	prefix, err := netlink.ParseIPNet("192.168.8.0/24")
	must(t, err, n.a.host.Netlink().RouteAdd(&netlink.Route{Dst: prefix, Gw: net.IPv4(192, 168, 9, 1), Table: policy}))
	rule := netlink.NewRule()
	rule.Tos, rule.Table, rule.Priority, rule.Family = tos, policy, 1000, netlink.FAMILY_V4
	must(t, n.a.host.Netlink().RuleAdd(rule))
	return policy
}

// T3: a configured TOS takes part in the choice of the outer route, of the packets
// and of the path that is looked up, and so do the routes of what is connected.
// Inherited, it does not.
func TestT3_O4_PolicyRouting(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*tunnel.Config)
		wire   uint8 // TOS
		other  bool  // the packets go by eth1
	}{
		"tos 0x10": {func(c *tunnel.Config) { c.TOS = 0x10 }, 0x10, true},
		"tos 0x13": {func(c *tunnel.Config) { c.TOS = 0x13 }, 0x10, true}, // ECN bits are not TOS
		"tos 0x08": {func(c *tunnel.Config) { c.TOS = 0x08 }, 0x08, false},
		"none":     {func(c *tunnel.Config) {}, 0, false},
		"inherit":  {func(c *tunnel.Config) { c.InheritTOS = true }, 0x10, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.byTOS(t, 0x10)
			log := n.a.listen()
			eth0, eth1 := capture(t, n.r1, "a0"), capture(t, n.r1, "a1")
			must(t, n.a.host.SetMTU("eth1", 1450))
			wire, silent, mtu := eth0, eth1, 1480
			if c.other {
				n.deleteRoute(t, "192.168.8.0/24") // there is only the one
				wire, silent, mtu = eth1, eth0, 1430
			}
			cfg := config(n.a, n.b)
			c.change(&cfg)
			n.a.start(t, cfg)
			n.b.start(t, config(n.b, n.a))
			if got := n.a.tunnel.MTU(); got != mtu {
				t.Errorf("the MTU of the link is %d, want %d", got, mtu)
			}
			const pings = 3
			ping(t, n.a, n.b, netlab.PingOptions{Count: pings, TOS: 0x10})
			labtest.WaitFor(t, "the packets on the wire where they belong", func() bool { return len(n.a.outerPackets(wire)) == pings })
			for _, p := range n.a.outerPackets(wire) {
				if p.TOS() != c.wire {
					t.Errorf("TOS %#02x on the wire, want %#02x", p.TOS(), c.wire)
				}
			}

			// A shorter path is known of the route that the packets take.
			p := newProber(t, n.a, n.b)
			n.shrink(t, 1400)
			p.learns(t, mtu, 1380)
			p.arrives(t, 1380)
			if got := n.a.outerPackets(silent); len(got) > 0 {
				t.Errorf("%d packets go the other way", len(got))
			}
			n.balance(t)
			n.a.drops(t, stats.TooBig)
			if strings.Contains(log.String(), "WARN") {
				t.Errorf("the tunnel says:\n%s", log)
			}
		})
	}
}
