package tunnel_test

import (
	"net/netip"
	"slices"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/tunnel"
)

// secondUplink is the address that the method of this name adds.
var secondUplink = netip.MustParseAddr("192.168.9.101")

// linkMTU returns the MTU that ip(8) shows of s's tunnel.
func (s *site) linkMTU(t testing.TB) int {
	t.Helper()
	link, err := s.host.Netlink().LinkByName("tun01")
	must(t, err)
	return link.Attrs().MTU
}

// waitMTU returns when the link of a's tunnel has an MTU, and the tunnel knows.
func (n *network) waitMTU(t testing.TB, mtu int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the MTU is %d, known as %d, want %d", n.a.linkMTU(t), n.a.tunnel.MTU(), mtu)
		}
	}()
	labtest.WaitFor(t, "the MTU of the link", func() bool { return n.a.linkMTU(t) == mtu && n.a.tunnel.MTU() == mtu })
}

func TestO2_FollowsTheDevice(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.waitMTU(t, 1480)
	for _, c := range [][2]int{
		{1400, 1380}, {9000, 8980}, {65535, 65515}, {89, 69}, {88, 68}, {87, 68}, {68, 68}, {1500, 1480},
	} {
		must(t, n.a.host.SetMTU("eth0", c[0]))
		n.waitMTU(t, c[1])
	}
	ping(t, n.a, n.b, netlab.PingOptions{Size: 1452, DF: true})
	n.balance(t)
}

// It follows the route to another device, also where there was none.
func TestO2_FollowsTheRoute(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.deleteRoute(t, "192.168.8.0/24")
	n.a.start(t, config(n.a, n.b))
	n.b.start(t, config(n.b, n.a))
	n.waitMTU(t, 1480)
	n.secondUplink(t)
	must(t, n.a.host.SetMTU("eth1", 1400), n.a.host.AddRoute("192.168.8.0/24", "192.168.9.1"))
	n.waitMTU(t, 1380)
	n.deleteRoute(t, "192.168.8.0/24")
	must(t, n.a.host.AddRoute("192.168.8.0/24", "192.168.6.1"))
	n.waitMTU(t, 1480)
	n.balance(t)
}

// secondUplink gives a a second way to r1, by eth1, but no route.
func (n *network) secondUplink(t testing.TB) {
	t.Helper()
	must(t,
		n.lab.Veth(n.a.host, "eth1", n.r1, "a1"),
		n.a.host.AddAddr("eth1", "192.168.9.101/24"),
		n.r1.AddAddr("a1", "192.168.9.1/24"),
		n.r2.AddRoute("192.168.9.0/24", "192.168.7.1"),
		n.b.host.AddRoute("192.168.9.0/24", "192.168.8.1"),
	)
}

// What a person says goes, in the command line or later; the path is known all the
// same.
func TestO2_NotAfterAPerson(t *testing.T) {
	t.Parallel()
	for name, mtu := range map[string]int{"--mtu": 1300, "ip link set mtu": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			log := n.a.listen()
			n.start(t, func(c *tunnel.Config) { c.MTU = mtu })
			if mtu == 0 {
				must(t, n.a.host.SetMTU("tun01", 1300))
			}
			n.waitMTU(t, 1300)
			must(t, n.a.host.SetMTU("eth0", 1200))
			p := newProber(t, n.a, n.b)
			p.learns(t, 1300, 1180) // so the tunnel has seen the device's
			must(t, n.a.host.SetMTU("eth0", 1500))
			labtest.WaitFor(t, "packets of 1300 bytes to pass again", func() bool {
				return ping(t, n.a, n.b, netlab.PingOptions{Size: 1272, Timeout: unanswered}).Received > 0
			})
			if got := n.a.linkMTU(t); got != 1300 {
				t.Errorf("the MTU is %d, set was 1300", got)
			}
			if log.count("mtu of the link") > 0 {
				t.Errorf("the tunnel says of the MTU:\n%s", log)
			}
			n.balance(t)
		})
	}
}

// A link that was moved to another namespace is beyond the tunnel, which says so
// once, and carries its packets as before.
func TestO2_MovedLink(t *testing.T) {
	t.Parallel()
	n := across(t)
	log := n.a.listen()
	n.start(t, nil)
	container := addHost(t, n.lab, "container")
	n.moveTo(t, container)
	inside := newSite(container, n.a.outer.String(), n.a.inner.String())
	if r := ping(t, inside, n.b, netlab.PingOptions{Timeout: answered}); r.Received != 1 {
		t.Fatalf("ping from the container: %v", r)
	}
	c := capture(t, container, "tun01")
	for _, mtu := range []int{1400, 1300, 1200} {
		must(t, n.a.host.SetMTU("eth0", mtu))
		labtest.WaitFor(t, "the tunnel to know the device's MTU", func() bool {
			p := n.tooBig()[:mtu-19]
			p.SetDestination([4]byte{10, 77, 0, byte(mtu / 100)})
			inject(t, container, "tun01", p)
			return slices.ContainsFunc(icmpErrors(c), func(e icmpError) bool { return e.mtu == mtu-20 })
		})
	}
	if got := log.count("mtu"); got > 1 {
		t.Errorf("%d lines about an MTU that the tunnel cannot set:\n%s", got, log)
	}
}
