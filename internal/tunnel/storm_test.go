package tunnel_test

import (
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// stranger is the inner address of a sender that a knows nothing of, so that its
// kernel does not act on what the sender hears.
var stranger = netip.MustParseAddr("10.99.0.1")

// tooBig returns a packet with DF that is longer than a path of 1400 bytes takes.
func (n *network) tooBig() packet.IPv4 {
	p := echoReply(stranger, n.b.inner, 1480)
	p.SetDF(true)
	return p
}

// shorten makes the path 1400 bytes long, and returns when the tunnel knows.
func (n *network) shorten(t testing.TB) {
	t.Helper()
	n.shrink(t, 1400)
	labtest.WaitFor(t, "a packet to be too big", func() bool {
		inject(t, n.a.host, "tun01", n.tooBig())
		return n.a.tunnel.Stats().TX.Drops[stats.TooBig] > 0
	})
	tun01 := capture(t, n.a.host, "tun01")
	defer tun01.Close()
	n.settle(t, tun01)
	n.balance(t)
}

// However many packets are too long, their senders hear of a bounded number: in a
// second a thousand of all, and a hundred of one (G7). Each packet is counted.
func TestG7_RateLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		queues, senders int
		most            func(seconds float64) float64
	}{
		"many senders":                {1, 10_000, func(s float64) float64 { return 1000 + 1000*s }},
		"many senders, several loops": {2, 10_000, func(s float64) float64 { return 1000 + 1000*s }},
		"one sender":                  {1, 1, func(s float64) float64 { return 100 + 100*s }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(cfg *tunnel.Config) { cfg.Queues = c.queues })
			n.shorten(t)
			before := n.a.tunnel.Stats().TX.Drops[stats.TooBig]
			took := n.a.took(t)
			tun01 := capture(t, n.a.host, "tun01")
			packets := make([][]byte, 10_000)
			for i := range packets {
				p := n.tooBig()
				p.SetSource([4]byte{10, 99, byte(i % c.senders >> 8), byte(i % c.senders)})
				packets[i] = p
			}
			start := time.Now()
			inject(t, n.a.host, "tun01", packets...)
			labtest.WaitFor(t, "the packets to leave the link", func() bool {
				return n.a.took(t) >= took+uint64(len(packets))
			})
			n.settle(t, tun01)
			n.balance(t)
			elapsed := time.Since(start)
			tun01.Close()

			dropped := n.a.tunnel.Stats().TX.Drops[stats.TooBig] - before
			if dropped < uint64(len(packets))/4 {
				t.Fatalf("only %d packets came as far as the path's MTU", dropped)
			}
			heard, most := float64(len(icmpErrors(tun01))), c.most(elapsed.Seconds())
			t.Logf("%d packets too big, %v ICMP errors in %v", dropped, heard, elapsed)
			if tun01.Dropped() == 0 && (heard > most+1 || heard < 40) {
				t.Errorf("%v ICMP errors in %v, want 40 to %.0f", heard, elapsed, most)
			}
		})
	}
}

// took returns how many packets the link gave to the tunnel, or lost because its
// queue was full.
func (s *site) took(t testing.TB) uint64 {
	t.Helper()
	link, err := s.host.Netlink().LinkByName("tun01")
	must(t, err)
	return link.Attrs().Statistics.TxPackets + link.Attrs().Statistics.TxDropped
}

// There is no error about what must have none, for a packet too long (T7) as for
// an error that the tunnel met (T8); the first are dropped, the others sent.
func TestG7_NoError(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.TTL = 64 })
	n.shorten(t)
	change := func(f func(packet.IPv4)) packet.IPv4 {
		p := n.tooBig()
		f(p)
		p.UpdateChecksum()
		return p
	}
	icmp := func(typ byte) packet.IPv4 { return change(func(p packet.IPv4) { p.Payload()[0] = typ }) }
	from := func(a string) packet.IPv4 {
		return change(func(p packet.IPv4) { p.SetSource(netip.MustParseAddr(a).As4()) })
	}
	to := func(a string) packet.IPv4 {
		return change(func(p packet.IPv4) { p.SetDestination(netip.MustParseAddr(a).As4()) })
	}
	for name, c := range map[string]struct {
		p    packet.IPv4
		want int
	}{
		"echo":           {icmp(8), 1},
		"echo reply":     {icmp(0), 1},
		"first fragment": {change(func(p packet.IPv4) { p.SetFragment(0, true) }), 1},
		"unreachable":    {icmp(3), 0},
		"time exceeded":  {icmp(11), 0},
		"redirect":       {icmp(5), 0},
		"unknown type":   {icmp(42), 0},
		"later fragment": {change(func(p packet.IPv4) { p.SetFragment(8, true) }), 0},
		"multicast":      {to("224.0.0.5"), 0},
		"broadcast":      {to("255.255.255.255"), 0},
		"class E":        {to("240.0.0.1"), 0},
		"from 0/8":       {from("0.0.0.1"), 0},
		"from loopback":  {from("127.0.0.1"), 0},
		"from multicast": {from("224.0.0.5"), 0},
		"from broadcast": {from("255.255.255.255"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			tun01 := capture(t, n.a.host, "tun01")
			defer tun01.Close()
			before := n.a.tunnel.Stats().TX
			inject(t, n.a.host, "tun01", c.p)
			labtest.WaitFor(t, "it to be dropped", func() bool { return n.a.tunnel.Stats().TX.Drops[stats.TooBig] > before.Drops[stats.TooBig] })
			n.settle(t, tun01)
			n.balance(t)
			got := icmpErrors(tun01)
			if len(got) != c.want {
				t.Errorf("its sender hears %v, want %d errors", got, c.want)
			}
			for _, e := range got {
				if e.typ != 3 || e.code != 4 || e.mtu != 1380 {
					t.Errorf("its sender hears %v with mtu %d, want 3/4 with 1380", e, e.mtu)
				}
			}
			after := n.a.tunnel.Stats().TX
			if after.Drops[stats.TooBig] != before.Drops[stats.TooBig]+1 {
				t.Errorf("counted %+v, before %+v", after, before)
			}

			// The same packet, made short enough, when an error waits for a sender.
			short := packet.IPv4(bytes.Clone(c.p[:100]))
			n.a.sendICMPErrors(t, n.r1, n.b, 1, 11, 0, 0)
			n.softErrorWaits(t)
			before = n.a.tunnel.Stats().TX
			inject(t, n.a.host, "tun01", short)
			n.settle(t, tun01)
			n.balance(t)
			if got := icmpErrors(tun01)[len(got):]; len(got) != c.want {
				t.Errorf("short, its sender hears %v, want %d errors", got, c.want)
			}
			if after := n.a.tunnel.Stats().TX; after.Packets != before.Packets+2 { // and the mark
				t.Errorf("short, counted %+v, before %+v", after, before)
			}
		})
	}
}

// softErrorWaits returns when the ICMP errors from r1 have been noted: a packet that
// took the same way after them has been delivered, and no socket holds an error.
func (n *network) softErrorWaits(t testing.TB) {
	t.Helper()
	before := n.a.tunnel.Stats().RX.Packets
	inject(t, n.b.host, "tun01", echoReply(n.b.inner, n.a.inner, 100))
	labtest.WaitFor(t, "a packet from the other end", func() bool { return n.a.tunnel.Stats().RX.Packets > before })
	empty := 0
	var handled uint64
	labtest.WaitFor(t, "the errors to be handled", func() bool {
		if now := n.a.tunnel.ICMPErrors(); n.a.rawSocketsHold(t) || now != handled {
			empty, handled = 0, now
		}
		empty++
		return empty > 2
	})
}

// rawSocketsHold reports whether a raw socket of s holds something that was not read
// (raw_sock_seq_show in net/ipv4/raw.c).
func (s *site) rawSocketsHold(t testing.TB) (holds bool) {
	t.Helper()
	must(t, s.host.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/raw")
		for line := range strings.Lines(string(text)) {
			if words := strings.Fields(line); len(words) > 4 && words[0] != "sl" {
				holds = holds || !strings.HasSuffix(words[4], ":00000000")
			}
		}
		return err
	}))
	return holds
}

// One sender that floods does not keep the others from hearing of the path's MTU,
// as it does not in Linux, which has no limit there (icmpv4_mask_allow in
// net/ipv4/icmp.c).
func TestG7_FloodAndOtherSenders(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.shorten(t)
	const others, flooding = 200, 64 // of the flood for each of another sender's
	var packets [][]byte
	for i := range others {
		for range flooding {
			packets = append(packets, n.tooBig())
		}
		p := n.tooBig()
		p.SetSource([4]byte{10, 98, 0, byte(i)})
		packets = append(packets, p)
	}
	took := n.a.took(t)
	before := n.a.tunnel.Stats().TX.Drops[stats.TooBig]
	tun01 := capture(t, n.a.host, "tun01")
	for batch := range slices.Chunk(packets, 1000) {
		inject(t, n.a.host, "tun01", batch...)
		took += uint64(len(batch))
		labtest.WaitFor(t, "the packets to leave the link", func() bool { return n.a.took(t) >= took })
	}
	n.settle(t, tun01)
	if dropped := n.a.tunnel.Stats().TX.Drops[stats.TooBig] - before; int(dropped) < len(packets)*9/10 {
		t.Fatalf("of %d packets only %d came as far as the path's MTU", len(packets), dropped)
	}
	heard := 0
	for _, e := range icmpErrors(tun01) {
		if strings.HasPrefix(e.dst, "10.98.") {
			heard++
		}
	}
	if heard < others/2 {
		t.Errorf("of %d other senders %d hear of the path's MTU", others, heard)
	}
	n.balance(t)
}
