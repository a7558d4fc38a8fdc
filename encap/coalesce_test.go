package encap_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
)

// tcpFlow returns n segments that follow each other, with size bytes each. A change
// is made to the one at index 2.
func tcpFlow(n, size int, change func(*tcpSegment)) []packet.IPv4 {
	var all []packet.IPv4
	for i := range n {
		s := tcpSegment{
			ip: ipv4{df: true, id: 0xfffe + uint16(i), tos: ect0}, port: 4000, seq: 0xffffff00 + uint32(i*size),
			ack: 77, window: 500, options: timestamps, data: bytes.Repeat([]byte{byte(i + 1)}, size),
		}
		if i == 2 && change != nil {
			change(&s)
		}
		all = append(all, s.build(complete))
	}
	return all
}

// udpFlow returns datagrams of a flow with so many bytes each.
func udpFlow(sizes ...int) []packet.IPv4 {
	var all []packet.IPv4
	for i, size := range sizes {
		s := udpDatagram{ip: ipv4{id: uint16(i)}, port: 4000, data: bytes.Repeat([]byte{byte(i + 1)}, size)}
		all = append(all, s.build(complete))
	}
	return all
}

// damage changes the packet at index i.
func damage(all []packet.IPv4, i int, change func(packet.IPv4)) []packet.IPv4 {
	change(all[i])
	return all
}

// link is a link for which everything may be merged.
var link = newLink()

func newLink() *encap.Link { return &encap.Link{MTU: tunMTU, TCP: true, UDP: true} }

// checkBatch fails unless c merges the packets into Supers of want packets each,
// and the kernel gets the packets in order and unchanged.
func checkBatch(t *testing.T, c *encap.Coalescer, in []packet.IPv4, want ...int) {
	t.Helper()
	checkLinkBatch(t, c, link, in, want...)
}

func checkLinkBatch(t *testing.T, c *encap.Coalescer, l *encap.Link, in []packet.IPv4, want ...int) {
	t.Helper()
	for _, p := range in {
		c.Add(bytes.Clone(p), l)
	}
	supers := c.Take()
	var counts []int
	var view, split []packet.IPv4
	for i := range supers {
		if first := len(split); supers[i].First != first {
			t.Errorf("Super %d: First %d, want %d", i, supers[i].First, first)
		}
		counts = append(counts, supers[i].Count)
		view = append(view, kernelView(t, &supers[i], tunMTU)...)
		for _, p := range supers[i].Split() {
			split = append(split, p)
		}
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Fatalf("packets in one (-want +got):\n%s", diff)
	}
	for name, got := range map[string][]packet.IPv4{"the kernel sees": view, "Split gives": split} {
		if len(got) != len(in) {
			t.Fatalf("%s %d packets, want %d", name, len(got), len(in))
		}
		for i := range in {
			if !bytes.Equal(got[i], in[i]) {
				t.Errorf("%s as packet %d\n% x, want\n% x", name, i, got[i][:min(60, len(got[i]))], in[i][:min(60, len(in[i]))])
			}
		}
	}
}

// What ends a merge in TCP: the packet at index 2 of 5 differs from the others. With
// {2, 1, 2} it stays alone; with {3, 2} it is the last of its superpacket.
func TestCoalesce_TCPUnlike(t *testing.T) {
	alone, last := []int{2, 1, 2}, []int{3, 2}
	tests := []struct {
		name   string
		change func(*tcpSegment)
		want   []int
	}{
		{"nothing", func(*tcpSegment) {}, []int{5}},
		{"FIN", func(s *tcpSegment) { s.flags = packet.TCPFin }, alone},
		{"SYN", func(s *tcpSegment) { s.flags = packet.TCPSyn }, alone},
		{"RST", func(s *tcpSegment) { s.flags = packet.TCPRst }, alone},
		{"PSH", func(s *tcpSegment) { s.flags = packet.TCPPsh }, last},
		{"URG", func(s *tcpSegment) { s.flags = packet.TCPUrg; s.urgent = 1 }, alone},
		{"urgent pointer without URG", func(s *tcpSegment) { s.urgent = 1 }, alone},
		{"ECE", func(s *tcpSegment) { s.flags = packet.TCPEce }, alone},
		{"CWR", func(s *tcpSegment) { s.flags = packet.TCPCwr }, alone},
		{"FIN and PSH", func(s *tcpSegment) { s.flags = packet.TCPFin | packet.TCPPsh }, alone},
		{"no ACK", func(s *tcpSegment) { s.noAck = true }, alone},
		{"AE, which was NS", func(s *tcpSegment) { s.reserved = 1 }, alone},
		{"a reserved flag", func(s *tcpSegment) { s.reserved = 8 }, alone},
		{"window", func(s *tcpSegment) { s.window++ }, alone},
		{"acknowledgment number", func(s *tcpSegment) { s.ack++ }, alone},
		{"acknowledgment number, high bits", func(s *tcpSegment) { s.ack ^= 1 << 31 }, alone},
		{"gap", func(s *tcpSegment) { s.seq++ }, alone},
		{"overlap", func(s *tcpSegment) { s.seq-- }, alone},
		{"duplicate", func(s *tcpSegment) { s.seq -= 100; s.ip.id-- }, alone},
		{"far away", func(s *tcpSegment) { s.seq ^= 1 << 31 }, alone},
		{"other timestamp", func(s *tcpSegment) { s.options = bytes.Clone(timestamps); s.options[7]++ }, alone},
		{"options of other length", func(s *tcpSegment) { s.options = timestamps[:4]; s.options = []byte{1, 1, 1, 1} }, alone},
		{"no options", func(s *tcpSegment) { s.options = nil }, alone},
		{"same headers' length by IP options", func(s *tcpSegment) { s.ip.options = timestamps; s.options = nil }, alone},
		{"IP options", func(s *tcpSegment) { s.ip.options = routerAlert }, alone},
		{"TTL", func(s *tcpSegment) { s.ip.ttl = 63 }, alone},
		{"DSCP", func(s *tcpSegment) { s.ip.tos |= 0xb8 }, alone},
		{"ECT(1)", func(s *tcpSegment) { s.ip.tos = ect1 }, alone},
		{"not ECT", func(s *tcpSegment) { s.ip.tos = notECT }, alone},
		{"CE", func(s *tcpSegment) { s.ip.tos = ce }, alone},
		{"no DF", func(s *tcpSegment) { s.ip.df = false }, alone},
		{"ID skips", func(s *tcpSegment) { s.ip.id += 2 }, alone},
		{"ID one less", func(s *tcpSegment) { s.ip.id-- }, alone},
		{"pure ACK", func(s *tcpSegment) { s.data = nil }, alone},
		{"longer", func(s *tcpSegment) { s.data = append(s.data, 1) }, alone},
		{"shorter", func(s *tcpSegment) { s.data = s.data[:99] }, last},
		{"one byte", func(s *tcpSegment) { s.data = s.data[:1] }, last},
		{"first fragment", func(s *tcpSegment) { s.ip.mf = true }, alone},
		{"later fragment", func(s *tcpSegment) { s.ip.offset = 8 }, alone},
	}
	c := encap.NewCoalescer(8)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkBatch(t, c, tcpFlow(5, 100, tt.change), tt.want...) })
	}
	t.Run("another flow", func(t *testing.T) {
		for name, change := range map[string]func(*tcpSegment){
			"port":        func(s *tcpSegment) { s.port++ },
			"source":      func(s *tcpSegment) { s.ip.src = "10.0.0.3" },
			"destination": func(s *tcpSegment) { s.ip.dst = "10.0.0.3" },
		} {
			in := tcpFlow(3, 100, change) // the other comes last: order is that of the first packets
			t.Run(name, func(t *testing.T) { checkBatch(t, c, in, 2, 1) })
		}
	})
}

// All packets have the same feature: some features permit merging.
func TestCoalesce_TCPAlike(t *testing.T) {
	tests := []struct {
		name   string
		change func(*tcpSegment)
		merges bool
	}{
		{"not ECT", func(s *tcpSegment) { s.ip.tos = notECT }, true},
		{"ECT(1), DSCP, TTL", func(s *tcpSegment) { s.ip.tos = 0xb8 | ect1; s.ip.ttl = 1 }, true},
		{"no DF", func(s *tcpSegment) { s.ip.df = false }, true},
		{"no options", func(s *tcpSegment) { s.options = nil }, true},
		{"longest options", func(s *tcpSegment) { s.options = fortyBytes }, true},
		{"CE", func(s *tcpSegment) { s.ip.tos = ce }, false},
		{"ECE", func(s *tcpSegment) { s.flags = packet.TCPEce }, false},
		{"PSH", func(s *tcpSegment) { s.flags = packet.TCPPsh }, false},
		{"AE", func(s *tcpSegment) { s.reserved = 1 }, false},
		{"IP options", func(s *tcpSegment) { s.ip.options = routerAlert }, false},
		{"no data", func(s *tcpSegment) { s.data = nil; s.seq = 9 }, false},
	}
	c := encap.NewCoalescer(8)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var in []packet.IPv4
			for i := range 4 {
				s := tcpSegment{ip: ipv4{df: true, id: uint16(i)}, seq: uint32(10 * i), options: timestamps, data: make([]byte, 10)}
				tt.change(&s)
				in = append(in, s.build(complete))
			}
			if tt.merges {
				checkBatch(t, c, in, 4)
			} else {
				checkBatch(t, c, in, 1, 1, 1, 1)
			}
		})
	}
}

// A packet with a wrong checksum joins nothing, and nothing joins it.
func TestCoalesce_Damage(t *testing.T) {
	changes := map[string]func(packet.IPv4){
		"TCP or UDP checksum": func(p packet.IPv4) { p[p.HdrLen()+7] ^= 0x40 }, // TCP: damage in seq; UDP: in the field
		"payload":             func(p packet.IPv4) { p[len(p)-1] ^= 1 },
		"IP checksum":         func(p packet.IPv4) { p[10] ^= 0x80 },
		"IP ID":               func(p packet.IPv4) { p[5] ^= 0x10 },
		"reserved IP flag":    func(p packet.IPv4) { p[6] |= 0x80; p.UpdateChecksum() }, // no damage, but odd
		"IP checksum zeroed":  func(p packet.IPv4) { p[10], p[11] = 0, 0 },
	}
	want := [][]int{{1, 4}, {1, 1, 3}, {2, 1, 2}, {3, 1, 1}, {4, 1}}
	c := encap.NewCoalescer(8)
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			for i := range 5 {
				checkBatch(t, c, damage(tcpFlow(5, 100, nil), i, change), want[i]...)
				checkBatch(t, c, damage(udpFlow(100, 100, 100, 100, 100), i, change), want[i]...)
			}
			// All of them, and all in the same way.
			in := tcpFlow(3, 100, nil)
			for i := range in {
				change(in[i])
			}
			checkBatch(t, c, in, 1, 1, 1)
		})
	}
}

// A packet with a truncated or invalid transport header may be of any flow between
// its hosts: no later packet passes it.
func TestCoalesce_BrokenTransportHeader(t *testing.T) {
	c := encap.NewCoalescer(8)
	cutTo := func(n int) func(packet.IPv4) packet.IPv4 {
		return func(p packet.IPv4) packet.IPv4 {
			p = p[:n]
			p.SetTotalLength(n)
			p.UpdateChecksum()
			return p
		}
	}
	for name, change := range map[string]func(packet.IPv4) packet.IPv4{
		"cut":           cutTo(20 + 7),
		"cut to 0":      cutTo(20),
		"data offset 4": func(p packet.IPv4) packet.IPv4 { p[32] = 4 << 4; return p },
		"data offset 15 of a short segment": func(p packet.IPv4) packet.IPv4 {
			p = cutTo(60)(p)
			p[32] = 15 << 4
			return p
		},
	} {
		t.Run("TCP, "+name, func(t *testing.T) {
			in := tcpFlow(4, 100, nil)
			in = slices.Insert(in, 2, change(bytes.Clone(in[2])))
			checkBatch(t, c, in, 2, 1, 2)
		})
	}
	in := udpFlow(100, 100, 100, 100)
	in = slices.Insert(in, 2, cutTo(20+7)(bytes.Clone(in[2])))
	checkBatch(t, c, in, 2, 1, 2)
	// Between other hosts, it has no effect.
	other := cutTo(20 + 7)(tcpSegment{ip: ipv4{src: "10.0.0.9"}}.build(complete))
	for _, p := range slices.Insert(tcpFlow(4, 100, nil), 2, other) {
		c.Add(p, link)
	}
	if s := c.Take(); len(s) != 2 || s[0].Count != 4 {
		t.Errorf("%d Supers, want the flow and the broken packet", len(s))
	}
}

func TestCoalesce_UDP(t *testing.T) {
	putLength := func(n uint16) func(packet.IPv4) {
		return func(p packet.IPv4) { putWord(p, 24, n); slowChecksum(p, packet.UDPCsumOffset, complete) }
	}
	many := func(n, size int) []packet.IPv4 {
		sizes := make([]int, n)
		for i := range sizes {
			sizes[i] = size
		}
		return udpFlow(sizes...)
	}
	tests := []struct {
		name string
		in   []packet.IPv4
		want []int
	}{
		{"one size", udpFlow(100, 100, 100), []int{3}},
		{"shorter at last", udpFlow(100, 100, 1), []int{3}},
		{"shorter, then the same", udpFlow(100, 100, 99, 100, 100), []int{3, 2}},
		{"shorter, then as short", udpFlow(100, 99, 99, 99), []int{2, 2}},
		{"longer", udpFlow(100, 100, 101, 101), []int{2, 2}},
		{"longer, then the same", udpFlow(100, 100, 101, 100, 100), []int{2, 2, 1}},
		{"empty ones", udpFlow(100, 0, 100), []int{1, 1, 1}},
		{"without checksum", damage(udpFlow(100, 100, 100, 100, 100), 2, func(p packet.IPv4) { putWord(p, 26, 0) }), []int{2, 1, 2}},
		{"length one less", damage(udpFlow(100, 100, 100, 100, 100), 2, putLength(107)), []int{2, 1, 2}},
		{"length one more", damage(udpFlow(100, 100, 100, 100, 100), 2, putLength(109)), []int{2, 1, 2}},
		{"length 0", damage(udpFlow(100, 100, 100, 100, 100), 2, putLength(0)), []int{2, 1, 2}},
		{"64 is all a kernel takes", many(130, 10), []int{64, 64, 2}},
		{"longest", many(46, 1472), []int{44, 2}},
	}
	c := encap.NewCoalescer(130)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkBatch(t, c, tt.in, tt.want...) })
	}
	t.Run("left alone", func(t *testing.T) {
		c := encap.NewCoalescer(8)
		onlyTCP := &encap.Link{MTU: tunMTU, TCP: true}
		checkLinkBatch(t, c, onlyTCP, udpFlow(100, 100, 100), 1, 1, 1)
		checkLinkBatch(t, c, onlyTCP, tcpFlow(3, 100, nil), 3)
		onlyUDP := &encap.Link{MTU: tunMTU, UDP: true}
		checkLinkBatch(t, c, onlyUDP, udpFlow(100, 100, 100), 3)
		checkLinkBatch(t, c, onlyUDP, tcpFlow(3, 100, nil), 1, 1, 1)
	})
}

func TestCoalesce_Limits(t *testing.T) {
	c := encap.NewCoalescer(130)
	checkBatch(t, c, tcpFlow(130, 10, nil), 64, 64, 2)
	checkBatch(t, c, tcpFlow(60, 1428, nil), 45, 15)
	// 46 packets that fill 65535 bytes to the last, and to one more.
	for _, tt := range []struct {
		n    int
		want []int
	}{{packet.IPv4MaxLen - 52 - 45*1428, []int{46}}, {packet.IPv4MaxLen - 52 - 45*1428 + 1, []int{45, 1}}} {
		in := tcpFlow(46, 1428, nil)
		short := in[45][:52+tt.n]
		short.SetTotalLength(len(short))
		short.UpdateChecksum()
		slowChecksum(short, packet.TCPCsumOffset, complete)
		in[45] = short
		checkBatch(t, c, in, tt.want...)
	}
	checkBatch(t, c, nil)
}

// With DF, the ID may be constant instead of consecutive (RFC 6864 §4.1). The kernel
// makes it consecutive.
func TestCoalesce_ID(t *testing.T) {
	flow := func(df bool, ids ...uint16) []packet.IPv4 {
		var all []packet.IPv4
		for i, id := range ids {
			all = append(all, tcpSegment{ip: ipv4{df: df, id: id}, seq: uint32(i), data: []byte{1}}.build(complete))
		}
		return all
	}
	c := encap.NewCoalescer(8)
	for _, p := range flow(true, 5, 5, 5, 5) {
		c.Add(p, link)
	}
	if s := c.Take(); len(s) != 1 || s[0].Count != 4 {
		t.Errorf("DF, ID constant: %d Supers", len(s))
	} else {
		for i, p := range kernelView(t, &s[0], tunMTU) {
			if want := flow(true, 5, 6, 7, 8)[i]; !bytes.Equal(p, want) {
				t.Errorf("DF, ID constant: packet %d % x, want % x", i, p, want)
			}
		}
	}
	checkBatch(t, c, flow(false, 5, 5, 5), 1, 1, 1)
	checkBatch(t, c, flow(false, 0xffff, 0, 1), 3)
	checkBatch(t, c, flow(true, 0xffff, 0, 1), 3)
	checkBatch(t, c, flow(true, 5, 7, 9), 1, 1, 1)
	checkBatch(t, c, flow(true, 7, 6, 5), 1, 1, 1)
}

// A packet that a kernel left unfinished stays alone, with the header of Unfinished.
func TestCoalesce_Unfinished(t *testing.T) {
	c := encap.NewCoalescer(8)
	in := tcpFlow(5, 100, nil)
	slowChecksum(in[2], packet.TCPCsumOffset, partial)
	checkBatch(t, c, in, 2, 1, 2)
	in = udpFlow(100, 100, 100, 100, 100)
	slowChecksum(in[2], packet.UDPCsumOffset, partial)
	checkBatch(t, c, in, 2, 1, 2)
	merged := tcpSegment{ip: ipv4{df: true}, data: make([]byte, 60000)}.build(partial)
	checkBatch(t, c, []packet.IPv4{merged, merged}, 1, 1)
}

// Merging ends at the next packet after the Link changed, for this Link only.
func TestCoalesce_Stop(t *testing.T) {
	c := encap.NewCoalescer(8)
	l := newLink()
	in := tcpFlow(4, 100, nil)
	checkLinkBatch(t, c, l, in, 4)
	for i, p := range tcpFlow(4, 100, nil) {
		if i == 2 {
			l.TCP, l.UDP = false, false
		}
		c.Add(p, l)
	}
	if s := c.Take(); len(s) != 3 || s[0].Count != 2 {
		t.Errorf("stopped after two packets of four: %d Supers", len(s))
	}
	checkLinkBatch(t, c, l, in, 1, 1, 1, 1)
	checkLinkBatch(t, c, l, udpFlow(9, 9), 1, 1)
	checkBatch(t, c, in, 4)
}
