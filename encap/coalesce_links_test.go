package encap_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
)

// added is a packet for one of several links.
type added struct {
	link *encap.Link
	packet.IPv4
}

// alternate returns the packets of a and b in turns, for the links x and y.
func alternate(x *encap.Link, a []packet.IPv4, y *encap.Link, b []packet.IPv4) []added {
	var all []added
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			all = append(all, added{x, bytes.Clone(a[i])})
		}
		if i < len(b) {
			all = append(all, added{y, bytes.Clone(b[i])})
		}
	}
	return all
}

// firstAndCount are those fields of a Super.
type firstAndCount struct{ First, Count int }

// checkLinks fails unless the batch makes the Supers want, and each has the packets
// of one link, from First on.
func checkLinks(t *testing.T, c *encap.Coalescer, in []added, want ...firstAndCount) {
	t.Helper()
	before := make([]packet.IPv4, len(in))
	for i, a := range in {
		before[i] = bytes.Clone(a.IPv4)
		c.Add(a.IPv4, a.link)
	}
	supers := c.Take()
	var got []firstAndCount
	for i := range supers {
		got = append(got, firstAndCount{supers[i].First, supers[i].Count})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("Supers (-want +got):\n%s", diff)
	}
	for i := range supers {
		s := &supers[i]
		at := s.First
		for k, p := range kernelView(t, s, in[s.First].link.MTU) {
			for k > 0 && in[at].link != in[s.First].link {
				at++
			}
			if !bytes.Equal(p, before[at]) {
				t.Errorf("Super %d: packet %d is not packet %d of the batch", i, k, at)
			}
			at++
		}
	}
}

// Tunnels may carry the same inner flow, such as two hosts of one private address
// behind two peers.
func TestCoalesce_SameFlowOnTwoLinks(t *testing.T) {
	c := encap.NewCoalescer(16)
	x, y := newLink(), newLink()
	for name, flow := range map[string][]packet.IPv4{
		"TCP": tcpFlow(4, 100, nil),
		"UDP": udpFlow(100, 100, 100, 100),
	} {
		t.Run(name, func(t *testing.T) {
			// Twice: a batch has no effect on the next.
			for range 2 {
				checkLinks(t, c, alternate(x, flow, y, flow), firstAndCount{0, 4}, firstAndCount{1, 4})
			}
			// Consecutive packets for alternating links do not merge.
			checkLinks(t, c, []added{
				{x, bytes.Clone(flow[0])}, {y, bytes.Clone(flow[1])}, {x, bytes.Clone(flow[2])}, {y, bytes.Clone(flow[3])},
			}, firstAndCount{0, 1}, firstAndCount{1, 1}, firstAndCount{2, 1}, firstAndCount{3, 1})
		})
	}
}

// A packet that ends a merge on one link has no effect on the others.
func TestCoalesce_LinksDoNotCloseEachOther(t *testing.T) {
	truncated := func(p packet.IPv4) packet.IPv4 {
		p = p[:packet.IPv4HdrLen+7]
		p.SetTotalLength(len(p))
		p.UpdateChecksum()
		return p
	}
	flow := tcpFlow(4, 100, nil)
	for name, p := range map[string]packet.IPv4{
		"first fragment":   tcpFlow(3, 100, func(s *tcpSegment) { s.ip.mf = true })[2],
		"later fragment":   tcpFlow(3, 100, func(s *tcpSegment) { s.ip.offset = 8 })[2],
		"truncated header": truncated(bytes.Clone(flow[2])),
		"FIN":              tcpFlow(3, 100, func(s *tcpSegment) { s.flags = packet.TCPFin })[2],
		"gap":              tcpFlow(3, 100, func(s *tcpSegment) { s.seq++ })[2],
	} {
		t.Run(name, func(t *testing.T) {
			c := encap.NewCoalescer(16)
			x, y := newLink(), newLink()
			in := alternate(x, flow[:2], y, flow[:2])
			in = append(in, added{y, bytes.Clone(p)}) // number 4
			in = append(in, alternate(x, flow[2:], y, flow[2:])...)
			checkLinks(t, c, in, firstAndCount{0, 4}, firstAndCount{1, 2}, firstAndCount{4, 1}, firstAndCount{6, 2})
		})
	}
}

// MTU, TCP and UDP are those of the packet's own Link, at the time of Add.
func TestCoalesce_LinksDiffer(t *testing.T) {
	c := encap.NewCoalescer(16)
	tcp, udp := &encap.Link{MTU: 1480, TCP: true}, &encap.Link{MTU: 1280, UDP: true}
	flow, datagrams := tcpFlow(2, 100, nil), udpFlow(100, 100)
	checkLinks(t, c, alternate(tcp, flow, udp, flow), firstAndCount{0, 2}, firstAndCount{1, 1}, firstAndCount{3, 1})
	checkLinks(t, c, alternate(tcp, datagrams, udp, datagrams), firstAndCount{0, 1}, firstAndCount{1, 2}, firstAndCount{2, 1})

	super := tcpSegment{ip: ipv4{df: true}, data: make([]byte, 30000)}.build(partial)
	for range 2 {
		c.Add(bytes.Clone(super), tcp)
		c.Add(bytes.Clone(super), udp)
		supers := c.Take()
		if len(supers) != 2 {
			t.Fatalf("%d Supers, want 2", len(supers))
		}
		for i, l := range []*encap.Link{tcp, udp} {
			if got, want := int(supers[i].VNet.GSOSize), l.MTU-40; got != want {
				t.Errorf("MTU %d: GSO size %d, want %d", l.MTU, got, want)
			}
		}
		tcp.MTU, udp.MTU = 9000, 576
	}
}
