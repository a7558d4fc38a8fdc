package tunnel_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// Of all packets that came in, each is counted once: passed on, or under the reason
// that there is for it. What comes in the link's counters tell, and a capture.
func TestG5_EachPacketOnce(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*tunnel.Config){
		"default":                 func(*tunnel.Config) {},
		"offload off, nopmtudisc": func(c *tunnel.Config) { c.NoOffload, c.NoPMTUDisc = true, true },
		"queues 3":                func(c *tunnel.Config) { c.Queues = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, change)
			n.shrink(t, 1400) // so that some are too long
			wire := capture(t, n.b.host, "eth0")
			before := n.b.tunnel.Stats().RX
			for _, end := range n.directions() {
				if _, err := netlab.Transfer(labtest.Context(t), end[0].host, end[1].host, netip.AddrPortFrom(end[1].inner, 0), 1<<20); err != nil {
					t.Error(err)
				}
				p := newProber(t, end[0], end[1])
				p.learns(t, p.mtu(t), 1380)
				p = newProber(t, end[0], end[1])
				p.fragments(t)
				for _, size := range []int{28, 29, 1380, 1381, 9000, 65535} {
					p.exchange(t, size)
				}
			}
			drops := n.badPackets(t)
			n.settle(t, wire)
			n.balance(t)

			arrived := func() (count uint64) {
				for _, outer := range n.a.outerPackets(wire) {
					if outer.FragmentOffset() == 0 {
						count++
					}
				}
				return count
			}
			counted := func() bool { return total(n.b.tunnel.Stats().RX)-total(before) == arrived() }
			labtest.WaitFor(t, "all that arrived to be counted", counted)
			if diff := cmp.Diff(drops.rx, n.b.tunnel.Stats().RX.Drops); diff != "" {
				t.Errorf("dropped of what was received (-want +got):\n%s", diff)
			}
			tx := n.a.tunnel.Stats().TX.Drops
			tx[stats.TooBig] = 0 // some
			if diff := cmp.Diff(drops.tx, tx); diff != "" {
				t.Errorf("dropped of what was to be sent (-want +got):\n%s", diff)
			}

			must(t, n.b.host.SetDown("tun01"))
			labtest.WaitFor(t, "the tunnel to know that", func() bool { return !n.b.tunnel.State().Up && !n.b.tunnel.State().Fast })
			const down = 7
			for range down {
				inject(t, n.a.host, "", outerOf(n.a, n.b, echoReply(n.a.inner, n.b.inner, 100)))
			}
			labtest.WaitFor(t, "what comes for a link that is down to be counted", func() bool {
				return n.b.tunnel.Stats().RX.Drops[stats.LinkDown] == down
			})
			labtest.WaitFor(t, "all that arrived to be counted", counted)
		})
	}
}

// dropped counts what each end of a network has to drop, by reason.
type dropped struct{ tx, rx stats.Drops }

// badPackets gives a's link and b's receiver packets that each has to drop, and
// returns how many for what.
func (n *network) badPackets(t testing.TB) dropped {
	t.Helper()
	change := func(f func(p packet.IPv4)) packet.IPv4 {
		p := echoReply(stranger, n.b.inner, 100)
		f(p)
		return p
	}
	noTTL := change(func(p packet.IPv4) { p.SetTTL(0) })
	var d dropped

	deep := change(func(p packet.IPv4) {})
	for range 4 {
		deep = outerOf(n.a, newSite(nil, "10.99.0.9", "10.99.0.9"), deep)
	}
	for reason, p := range map[stats.Reason]packet.IPv4{
		stats.TTLExpired: noTTL,
		stats.Loop:       change(func(p packet.IPv4) { p.SetSource(n.b.outer.As4()) }),
		stats.TooDeep:    deep,
	} {
		for range 3 {
			inject(t, n.a.host, "tun01", p)
			d.tx[reason]++
		}
	}
	for _, c := range []struct {
		reason stats.Reason
		inner  packet.IPv4
	}{
		{stats.Malformed, change(func(p packet.IPv4) { p.SetTotalLength(101) })},
		{stats.Malformed, change(func(p packet.IPv4) { p[0] = 4<<4 | 4 })},
		{stats.Malformed, change(func(p packet.IPv4) { p[0] = 6<<4 | 5 })},
		{stats.Malformed, change(func(packet.IPv4) {})[:19]},
		{stats.TTLExpired, noTTL},
		{stats.Martian, change(func(p packet.IPv4) { p.SetSource([4]byte{127, 0, 0, 1}) })},
		{stats.Martian, change(func(p packet.IPv4) { p.SetSource(n.b.inner.As4()) })},
		{stats.Martian, change(func(p packet.IPv4) { p.SetDestination([4]byte{0, 0, 0, 1}) })},
	} {
		inject(t, n.a.host, "", outerOf(n.a, n.b, c.inner))
		d.rx[c.reason]++
	}
	marked := outerOf(n.a, n.b, change(func(packet.IPv4) {}))
	marked.SetTOS(3) // CE outside, and no ECN inside
	inject(t, n.a.host, "", marked)
	d.rx[stats.BadECN]++
	return d
}

// outerOf returns a packet of the tunnel from one end to the other, but for length
// and checksum.
func outerOf(from, to *site, inner packet.IPv4) packet.IPv4 {
	outer := echoReply(from.outer, to.outer, 20+len(inner))
	outer.SetProtocol(unix.IPPROTO_IPIP)
	copy(outer[20:], inner)
	outer.UpdateChecksum()
	return outer
}
