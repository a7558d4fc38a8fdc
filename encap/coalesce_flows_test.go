package encap_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
)

// traffic makes packets of several flows, most of them consecutive and some
// different. choose returns a number below n, and so decides what comes next.
type traffic struct {
	choose func(n int) int
	links  []*encap.Link
	flows  []tcpSegment // of UDP if ip.proto says so
	size   []int        // of each flow's segments
	last   packet.IPv4
}

// newTraffic returns so many flows for each link, the same for all.
func newTraffic(links, flows int, choose func(n int) int) *traffic {
	m := &traffic{choose: choose, flows: make([]tcpSegment, links*flows), size: make([]int, links*flows)}
	for range links {
		m.links = append(m.links, newLink())
	}
	for i := range m.flows {
		f := &m.flows[i]
		i /= links
		f.port = 4000 + uint16(i/4) // flows that differ in one thing only
		f.ip = ipv4{src: fmt.Sprintf("10.0.0.%d", 1+i/2%2), proto: []uint8{packet.ProtoTCP, packet.ProtoUDP}[i%2]}
		f.ip.df, f.ip.id, f.ip.tos = m.choose(4) > 0, uint16(m.choose(3))-2, uint8(m.choose(3))
		f.seq, f.window = uint32(m.choose(3))*100-200, 500
		f.options = [][]byte{nil, timestamps}[m.choose(2)]
	}
	for i := range m.size {
		m.size[i] = []int{1, 7, 100, 536, 1400}[m.choose(5)]
	}
	return m
}

// next returns a packet and its link. unlike is how many of 100 are not plain.
func (m *traffic) next(unlike int) (packet.IPv4, *encap.Link) {
	i := m.choose(len(m.flows))
	f := &m.flows[i]
	s := *f
	n := m.size[i]
	kind := -1
	if m.choose(100) < unlike {
		kind = m.choose(len(unlikeSegment) + len(unlikeBytes))
	}
	if kind >= 0 && kind < len(unlikeSegment) {
		unlikeSegment[kind](m, &s, &n)
	}
	for k := range n {
		s.data = append(s.data, byte(k)+byte(m.choose(256)&7))
	}
	f.seq = s.seq + uint32(n)
	f.ip.id = s.ip.id + 1
	p := s.build(complete)
	if s.ip.proto == packet.ProtoUDP {
		p = udpDatagram{ip: s.ip, port: s.port, data: s.data}.build(complete)
	}
	if kind >= len(unlikeSegment) {
		p = unlikeBytes[kind-len(unlikeSegment)](m, p)
	}
	m.last = bytes.Clone(p)
	return p, m.links[i%len(m.links)]
}

// unlikeSegment are changes that a sender may make to the next segment.
var unlikeSegment = []func(m *traffic, s *tcpSegment, n *int){
	func(m *traffic, s *tcpSegment, _ *int) { s.flags = 1 << m.choose(8) },
	func(_ *traffic, s *tcpSegment, _ *int) { s.flags = packet.TCPPsh },
	func(m *traffic, s *tcpSegment, _ *int) { s.reserved = uint8(m.choose(16)) },
	func(_ *traffic, s *tcpSegment, _ *int) { s.urgent = 9 },
	func(_ *traffic, s *tcpSegment, _ *int) { s.window++ },
	func(_ *traffic, s *tcpSegment, _ *int) { s.ack++ },
	func(m *traffic, s *tcpSegment, _ *int) { s.seq += uint32(m.choose(3)) - 1 },
	func(m *traffic, s *tcpSegment, n *int) { s.seq -= uint32(*n); s.ip.id -= uint16(m.choose(2)) },
	func(_ *traffic, s *tcpSegment, _ *int) { s.options = bytes.Repeat([]byte{1}, 12) },
	func(_ *traffic, s *tcpSegment, _ *int) { s.ip.options = routerAlert },
	func(_ *traffic, s *tcpSegment, _ *int) { s.ip.ttl = 63 },
	func(m *traffic, s *tcpSegment, _ *int) { s.ip.tos = uint8(m.choose(4)) },
	func(_ *traffic, s *tcpSegment, _ *int) { s.ip.df = !s.ip.df },
	func(m *traffic, s *tcpSegment, _ *int) { s.ip.id += uint16(m.choose(4)) - 2 },
	func(_ *traffic, s *tcpSegment, _ *int) { s.ip.mf = true },
	func(_ *traffic, s *tcpSegment, _ *int) { s.ip.offset = 8 },
	func(m *traffic, _ *tcpSegment, n *int) { *n = m.choose(*n + 2) },
	func(_ *traffic, _ *tcpSegment, n *int) { *n = 0 },
}

// unlikeBytes are changes to a packet on the way. It stays valid, as decapsulation
// drops invalid packets.
var unlikeBytes = []func(m *traffic, p packet.IPv4) packet.IPv4{
	func(m *traffic, p packet.IPv4) packet.IPv4 { // any bit, but of version and lengths
		if at := m.choose(min(len(p), 80)); at != 0 && at != 2 && at != 3 {
			p[at] ^= 1 << m.choose(8)
		}
		return p
	},
	func(m *traffic, p packet.IPv4) packet.IPv4 { p[len(p)-1] ^= 1 << m.choose(8); return p },
	func(m *traffic, p packet.IPv4) packet.IPv4 { p[10] ^= 1 << m.choose(8); return p },
	func(_ *traffic, p packet.IPv4) packet.IPv4 { p[6] ^= 0x80; p.UpdateChecksum(); return p },
	func(m *traffic, p packet.IPv4) packet.IPv4 { // cut, with a right IP checksum
		p = p[:p.HdrLen()+m.choose(len(p)-p.HdrLen()+1)]
		p.SetTotalLength(len(p))
		p.UpdateChecksum()
		return p
	},
	func(m *traffic, p packet.IPv4) packet.IPv4 {
		p.SetProtocol(uint8(m.choose(20)))
		p.UpdateChecksum()
		return p
	},
	func(m *traffic, p packet.IPv4) packet.IPv4 { return setChecksum(p, partial) },
	func(m *traffic, p packet.IPv4) packet.IPv4 { return setChecksum(p, none) },
	func(m *traffic, p packet.IPv4) packet.IPv4 { // once more the same
		if m.last != nil {
			return m.last
		}
		return p
	},
}

func setChecksum(p packet.IPv4, state checksumState) packet.IPv4 {
	offset := packet.TCPCsumOffset
	if p.Protocol() == packet.ProtoUDP {
		offset = packet.UDPCsumOffset
	}
	slowChecksum(p, offset, state)
	return p
}

// seen is a packet as the kernel gets it.
type seen struct {
	packet.IPv4
	merged bool // was part of a superpacket
}

// flowOf returns the name of the flow that p must stay in order with.
func flowOf(p packet.IPv4) string {
	hosts := string(p[12:20])
	if p.IsFragment() {
		return hosts // of any flow between them
	}
	if proto := p.Protocol(); (proto == packet.ProtoTCP || proto == packet.ProtoUDP) && len(p.Payload()) >= 4 {
		return hosts + string(p.Payload()[:4]) + string(rune(proto))
	}
	return hosts + "-" + string(rune(p.Protocol()))
}

// checkFlows fails unless got has the packets of sent, with those of each flow in
// order, and with the fragments between them that may be of the flow.
func checkFlows(t *testing.T, sent []packet.IPv4, got []seen) {
	t.Helper()
	if len(got) != len(sent) {
		t.Fatalf("%d packets, want %d", len(got), len(sent))
	}
	in, out := make(map[string][]packet.IPv4), make(map[string][]seen)
	for _, p := range sent {
		in[flowOf(p)] = nil
	}
	for flow := range in {
		for _, p := range sent {
			if f := flowOf(p); f == flow || f == flow[:8] {
				in[flow] = append(in[flow], p)
			}
		}
		for _, p := range got {
			if f := flowOf(p.IPv4); f == flow || f == flow[:8] {
				out[flow] = append(out[flow], p)
			}
		}
	}
	for flow, want := range in {
		if len(out[flow]) != len(want) {
			t.Fatalf("flow %x: %d packets, want %d", flow, len(out[flow]), len(want))
		}
		for i, p := range out[flow] {
			if !same(want[i], p) {
				t.Fatalf("flow %x, packet %d of %d (merged: %v):\n% x, want\n% x", flow, i, len(want), p.merged,
					p.IPv4[:min(64, len(p.IPv4))], want[i][:min(64, len(want[i]))])
			}
		}
	}
}

// same reports whether got is what was sent, byte for byte. In a merged packet, the
// ID may differ with DF, and a checksum of 0 may be 0xffff; but it had to be right.
func same(sent packet.IPv4, got seen) bool {
	if !got.merged {
		return bytes.Equal(sent, got.IPv4)
	}
	if slowSum(sent[:sent.HdrLen()], 0) != 0xffff || slowTransportSum(sent) != 0xffff {
		return false
	}
	a, b := packet.IPv4(bytes.Clone(sent)), packet.IPv4(bytes.Clone(got.IPv4))
	for _, p := range []packet.IPv4{a, b} {
		if p.DF() {
			p.SetID(0)
		}
		p.UpdateChecksum()
		if tcp := p.HdrLen() + packet.TCPCsumOffset; p.Protocol() == packet.ProtoTCP && p[tcp] == 0xff && p[tcp+1] == 0xff {
			putWord(p, tcp, 0)
		}
	}
	return bytes.Equal(a, b)
}

// checkTraffic passes n packets through c, in one batch, and returns the number of
// Supers.
func checkTraffic(t *testing.T, c *encap.Coalescer, m *traffic, n, unlike int) int {
	t.Helper()
	sent := make(map[*encap.Link][]packet.IPv4)
	got, split := make(map[*encap.Link][]seen), make(map[*encap.Link][]seen)
	var added []packet.IPv4
	var links []*encap.Link
	for range n {
		p, l := m.next(unlike)
		added, links = append(added, bytes.Clone(p)), append(links, l)
		sent[l] = append(sent[l], added[len(added)-1])
		c.Add(p, l)
	}
	supers := c.Take()
	last := -1
	for i := range supers {
		s := &supers[i]
		if s.First <= last || s.First >= n {
			t.Fatalf("Super %d of %d packets: First %d after %d", i, n, s.First, last)
		}
		last = s.First
		l := links[s.First]
		for _, p := range kernelView(t, s, tunMTU) {
			got[l] = append(got[l], seen{p, s.Count > 1})
		}
		packets := s.Split()
		if !bytes.Equal(packets[0], added[s.First]) {
			t.Fatalf("Super %d: First %d is another packet", i, s.First)
		}
		for _, p := range packets {
			split[l] = append(split[l], seen{p, false})
		}
	}
	for l := range sent {
		checkFlows(t, sent[l], got[l])
		checkFlows(t, sent[l], split[l])
	}
	return len(supers)
}

// Whatever the mix of flows and links, and whatever happens to packets, the kernel
// gets the packets of each flow in order. One Coalescer serves all batches.
func TestCoalesce_Flows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 0))
	const batch = 64
	c := encap.NewCoalescer(batch)
	for links := 1; links <= 3; links++ {
		for _, unlike := range []int{0, 5, 30, 100} {
			for flows := 1; flows <= 32/links; flows += 1 + flows/8 {
				t.Run(fmt.Sprintf("%d links, %d flows, %d%% unlike", links, flows, unlike), func(t *testing.T) {
					m := newTraffic(links, flows, r.IntN)
					for range 12 {
						n := 1 + r.IntN(batch)
						if unlike == 0 {
							n = 40 // which fit one superpacket each
						}
						supers := checkTraffic(t, c, m, n, unlike)
						if unlike == 0 && supers > links*flows {
							t.Errorf("%d plain packets of %d flows on %d links came out as %d", n, flows, links, supers)
						}
					}
				})
			}
		}
	}
}

func TestCoalesce_Allocs(t *testing.T) {
	for links := 1; links <= 4; links *= 2 {
		t.Run(fmt.Sprintf("%d links", links), func(t *testing.T) { checkCoalesceAllocs(t, links, 4/links) })
	}
}

func checkCoalesceAllocs(t *testing.T, links, flows int) {
	const batch = 64
	c := encap.NewCoalescer(batch)
	m := newTraffic(links, flows, func(n int) int { return n - 1 })
	var in, work []packet.IPv4
	var to []*encap.Link
	for i := range batch {
		m.choose = func(n int) int { return i % n }
		p, l := m.next(0)
		in, work, to = append(in, p), append(work, bytes.Clone(p)), append(to, l)
	}
	failed := 0
	allocs := testing.AllocsPerRun(100, func() {
		for i, p := range work {
			copy(p[:60], in[i]) // merging changes headers
			c.Add(p, to[i])
		}
		supers := c.Take()
		total := 0
		for i := range supers {
			total += supers[i].Count
			if supers[i].VNet.GSOSize == 0 || len(supers[i].Split()) != supers[i].Count {
				failed++
			}
		}
		if len(supers) != links*flows || total != batch {
			failed++
		}
	})
	if failed > 0 {
		t.Errorf("%d times the work was not done", failed)
	}
	if allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
}

// The bytes decide what the traffic is.
func FuzzCoalesce(f *testing.F) {
	r := rand.New(rand.NewPCG(4, 0))
	for _, n := range []int{0, 10, 100, 1000} {
		f.Add(randomBytes(r, n), uint8(n), uint8(n%3), true)
		f.Add(bytes.Repeat([]byte{99}, n), uint8(0), uint8(1), n > 10)
	}
	const batch = 24
	f.Fuzz(func(t *testing.T, b []byte, flows, links uint8, udp bool) {
		c := encap.NewCoalescer(batch)
		m := newTraffic(1+int(links%3), 1+int(flows%8), func(n int) int {
			if len(b) == 0 || n < 1 {
				return 0
			}
			v := int(b[0])
			b = b[1:]
			return v % n
		})
		m.links[0].UDP = udp
		for range 2 {
			checkTraffic(t, c, m, batch, 50)
		}
	})
}

// A Coalescer accepts whatever decapsulation delivers.
func FuzzCoalesceBytes(f *testing.F) {
	one := tcpFlow(2, 100, nil)
	f.Add([]byte(one[0]), []byte(one[1]))
	two := udpFlow(100, 50)
	f.Add([]byte(two[0]), []byte(two[1]))
	f.Add([]byte(one[0]), []byte(one[1][:45]))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var sent []packet.IPv4
		c := encap.NewCoalescer(3)
		for _, p := range []packet.IPv4{a, b, a} {
			if !p.Valid() {
				continue
			}
			p = bytes.Clone(p[:p.TotalLength()])
			sent = append(sent, bytes.Clone(p))
			c.Add(p, link)
		}
		supers := c.Take()
		var got []seen
		for i := range supers {
			for _, p := range kernelView(t, &supers[i], tunMTU) {
				got = append(got, seen{p, supers[i].Count > 1})
			}
		}
		checkFlows(t, sent, got)
	})
}
