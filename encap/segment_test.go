package encap_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
)

var (
	timestamps  = []byte{1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7}
	routerAlert = []byte{0x94, 4, 0, 0}
	fortyBytes  = bytes.Repeat([]byte{1}, 40)
)

// checkSegments fails unless the segments are exactly want, with right checksums.
func checkSegments(t *testing.T, super packet.IPv4, size int, want []packet.IPv4) {
	t.Helper()
	got := cut(t, super, superHdr(super, size))
	if len(got) != len(want) {
		t.Fatalf("%d segments, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			n := min(len(want[i]), 60)
			t.Fatalf("segment %d of %d:\n% x, want\n% x", i, len(got), got[i][:min(n, len(got[i]))], want[i][:n])
		}
		if slowSum(got[i][:got[i].HdrLen()], 0) != 0xffff || slowTransportSum(got[i]) != 0xffff {
			t.Fatalf("segment %d of %d: a wrong checksum", i, len(got))
		}
	}
}

func TestSegment_Sizes(t *testing.T) {
	data := randomBytes(rand.New(rand.NewPCG(1, 0)), packet.IPv4MaxLen)
	payloads := []int{1, 2, 3, 535, 536, 537, 1427, 1428, 1429, 2856, 2857, 30001, 65415, 65495, 65507}
	sizes := []int{1, 2, 3, 7, 536, 1361, 1428, 1460, 32768, 65495, 65535}
	for _, ipOptions := range [][]byte{nil, routerAlert, fortyBytes} {
		for _, n := range payloads {
			for _, size := range sizes {
				if n/size > 1000 {
					continue
				}
				ip := ipv4{df: true, id: 0xfffe, tos: 0xba, ttl: 3, options: ipOptions}
				for _, tcpOptions := range [][]byte{timestamps, ipOptions} {
					if 40+len(ipOptions)+len(tcpOptions)+n > packet.IPv4MaxLen {
						continue
					}
					s := tcpSegment{ip: ip, seq: 0xfffffff0, ack: 7, window: 500, flags: packet.TCPPsh, options: tcpOptions, data: data[:n]}
					checkSegments(t, s.build(partial), size, s.segments(size))
				}
				if 28+len(ipOptions)+n <= packet.IPv4MaxLen {
					s := udpDatagram{ip: ip, port: 5353, data: data[:n]}
					checkSegments(t, s.build(partial), size, s.segments(size))
				}
			}
		}
	}
}

// FIN and PSH belong to the last segment, CWR to the first (tcp_gso_segment);
// all other flags are copied, even in combinations that make no sense.
func TestSegment_TCPFlags(t *testing.T) {
	data := bytes.Repeat([]byte{0xa5}, 1001)
	for flags := range 0x100 {
		for _, size := range []int{1, 400, 1000, 1001, 1400} {
			s := tcpSegment{
				ip: ipv4{id: 9}, flags: uint8(flags), noAck: true, reserved: uint8(flags) & 0xf,
				urgent: 0x1234, window: 0xffff, data: data,
			}
			checkSegments(t, s.build(partial), size, s.segments(size))
		}
	}
}

func TestSegment_IPHeader(t *testing.T) {
	s := tcpSegment{data: bytes.Repeat([]byte{1}, 3000)}
	for _, df := range []bool{false, true} {
		for _, id := range []uint16{0, 1, 0x7fff, 0xfffd, 0xfffe, 0xffff} {
			for _, tos := range []uint8{0, 1, 2, 3, 0xb8, 0xff} {
				s.ip = ipv4{df: df, id: id, tos: tos, ttl: int(tos/2) + 1, src: "172.16.0.1", dst: "203.0.113.9"}
				checkSegments(t, s.build(partial), 700, s.segments(700))
				u := udpDatagram{ip: s.ip, port: 1, data: s.data}
				checkSegments(t, u.build(partial), 700, u.segments(700))
			}
		}
	}
}

// A UDP checksum that comes out as 0 is sent as 0xffff (RFC 768, CSUM_MANGLED_0).
func TestSegment_UDPChecksumZero(t *testing.T) {
	zeros := 0
	for word := range 0x10000 {
		data := []byte{byte(word >> 8), byte(word), 1}
		s := udpDatagram{ip: ipv4{df: true}, port: 1, data: data}
		super := s.build(partial)
		segments, ok := encap.Segment(super, superHdr(super, 2))
		if !ok {
			t.Fatal("Segment = false")
		}
		hdr, payload := segments.Next(make(packet.IPv4, 28))
		p := append(hdr, payload...)
		sum := packet.UDP(p.Payload()).Checksum()
		if sum == 0 || slowTransportSum(p) != 0xffff {
			t.Fatalf("data %#04x: checksum %#04x", word, sum)
		}
		if sum == 0xffff {
			zeros++
		}
	}
	if zeros == 0 {
		t.Error("no checksum came out as 0")
	}
}

// Segment does not trust the fields that the kernel may leave invalid: the checksum,
// the UDP length, and the hint HdrLen.
func TestSegment_FieldsNotTrusted(t *testing.T) {
	ip := ipv4{df: true, id: 5}
	s := tcpSegment{ip: ip, data: bytes.Repeat([]byte{3}, 2000)}
	super := s.build(none)
	h := superHdr(super, 900)
	h.HdrLen = 0xffff
	h.GSOType |= packet.VNetGSOECN
	u := udpDatagram{ip: ip, data: s.data}
	lying := u.build(none)
	putWord(lying, lying.HdrLen()+4, 0xffff)
	for name, tt := range map[string]struct {
		super packet.IPv4
		h     packet.VNetHdr
		want  []packet.IPv4
	}{
		"TCP": {super, h, s.segments(900)},
		"UDP": {lying, superHdr(lying, 900), u.segments(900)},
	} {
		got := cut(t, tt.super, tt.h)
		if len(got) != len(tt.want) {
			t.Fatalf("%s: %d segments, want %d", name, len(got), len(tt.want))
		}
		for i := range got {
			if !bytes.Equal(got[i], tt.want[i]) {
				t.Errorf("%s, segment %d: % x, want % x", name, i, got[i][:40], tt.want[i][:40])
			}
		}
	}
}

func TestSegment_Invalid(t *testing.T) {
	type input struct {
		p packet.IPv4
		h packet.VNetHdr
	}
	onTCP := func(s ipv4, change func(*input)) input {
		in := input{p: tcpSegment{ip: s, options: timestamps, data: make([]byte, 3000)}.build(partial)}
		in.h = superHdr(in.p, 1000)
		change(&in)
		return in
	}
	onUDP := func(s ipv4, change func(*input)) input {
		in := input{p: udpDatagram{ip: s, data: make([]byte, 3000)}.build(partial)}
		in.h = superHdr(in.p, 1000)
		change(&in)
		return in
	}
	cutTo := func(n int) func(*input) {
		return func(in *input) { in.p = in.p[:n]; in.p.SetTotalLength(n) }
	}
	plain, options := ipv4{}, ipv4{options: routerAlert}
	tests := map[string]input{
		"no NEEDS_CSUM":                     onTCP(plain, func(in *input) { in.h.Flags = 0 }),
		"DATA_VALID in place of NEEDS_CSUM": onTCP(plain, func(in *input) { in.h.Flags = 2 }),
		"UDP, no NEEDS_CSUM":                onUDP(plain, func(in *input) { in.h.Flags = 0 }),
		"csum_start 0":                      onTCP(plain, func(in *input) { in.h.CsumStart = 0 }),
		"csum_start one before":             onTCP(plain, func(in *input) { in.h.CsumStart-- }),
		"csum_start one behind":             onTCP(plain, func(in *input) { in.h.CsumStart++ }),
		"csum_start within IP options":      onTCP(options, func(in *input) { in.h.CsumStart = 20 }),
		"csum_start beyond the packet":      onUDP(plain, func(in *input) { in.h.CsumStart = 0xffff }),
		"GSO size 0":                        onTCP(plain, func(in *input) { in.h.GSOSize = 0 }),
		"UDP, GSO size 0":                   onUDP(plain, func(in *input) { in.h.GSOSize = 0 }),
		"GSO type none":                     onTCP(plain, func(in *input) { in.h.GSOType = packet.VNetGSONone }),
		"GSO type none, ECN":                onTCP(plain, func(in *input) { in.h.GSOType = packet.VNetGSOECN }),
		"GSO type UFO":                      onUDP(plain, func(in *input) { in.h.GSOType = 3 }),
		"GSO type TCPv6":                    onTCP(plain, func(in *input) { in.h.GSOType = 4 }),
		"TCP as UDP":                        onTCP(plain, func(in *input) { in.h.GSOType = packet.VNetGSOUDPL4 }),
		"UDP as TCP":                        onUDP(plain, func(in *input) { in.h.GSOType = packet.VNetGSOTCPv4 }),
		"ICMP as TCP":                       onTCP(plain, func(in *input) { in.p.SetProtocol(packet.ProtoICMP) }),
		"IPIP as UDP":                       onUDP(plain, func(in *input) { in.p.SetProtocol(packet.ProtoIPIP) }),
		"first fragment":                    onTCP(ipv4{mf: true}, func(*input) {}),
		"later fragment":                    onUDP(ipv4{offset: 8}, func(*input) {}),
		"empty":                             onTCP(plain, func(in *input) { in.p = nil }),
		"cut IP header":                     onTCP(plain, func(in *input) { in.p = in.p[:19] }),
		"IPv6":                              onTCP(plain, func(in *input) { in.p[0] = 0x65 }),
		"IHL 4":                             onTCP(plain, func(in *input) { in.p[0] = 0x44; in.h.CsumStart = 16 }),
		"IHL beyond the packet":             onUDP(plain, func(in *input) { cutTo(40)(in); in.p[0] = 0x4f; in.h.CsumStart = 60 }),
		"total length one less":             onTCP(plain, func(in *input) { in.p.SetTotalLength(len(in.p) - 1) }),
		"total length one more":             onTCP(plain, func(in *input) { in.p.SetTotalLength(len(in.p) + 1) }),
		"total length 0":                    onTCP(plain, func(in *input) { in.p.SetTotalLength(0) }),
		"TCP header cut":                    onTCP(plain, cutTo(39)),
		"TCP options cut":                   onTCP(plain, cutTo(51)),
		"TCP data offset 4":                 onTCP(plain, func(in *input) { in.p[32] = 4 << 4 }),
		"TCP data offset beyond":            onTCP(plain, func(in *input) { cutTo(60)(in); in.p[32] = 15 << 4 }),
		"UDP header cut":                    onUDP(plain, cutTo(27)),
		"TCP, no payload":                   onTCP(plain, cutTo(52)),
		"UDP, no payload":                   onUDP(plain, cutTo(28)),
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			before := bytes.Clone(in.p)
			segments, ok := encap.Segment(in.p, in.h)
			if ok {
				t.Errorf("Segment(%+v) = true", in.h)
			}
			if hdr, payload := segments.Next(make(packet.IPv4, 120)); hdr != nil || payload != nil {
				t.Errorf("a segment of %d and %d bytes", len(hdr), len(payload))
			}
			if !bytes.Equal(in.p, before) {
				t.Error("the packet changed")
			}
		})
	}
}

// Coalescing segments gives the same superpacket again.
func TestSegment_ThenCoalesce(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 0))
	c := encap.NewCoalescer(64)
	for i := range 300 {
		size := 1 + r.IntN(1<<r.IntN(15))
		n := size + 1 + r.IntN(63*size)
		n = min(n, packet.IPv4MaxLen-80)
		if n <= size {
			size = n - 1
		}
		ip := ipv4{df: r.IntN(2) == 0, id: uint16(r.Uint32()), tos: uint8(r.UintN(64)<<2 | r.UintN(3)), ttl: 1 + r.IntN(255)}
		var super packet.IPv4
		if i%3 > 0 {
			super = tcpSegment{
				ip: ip, seq: r.Uint32(), ack: r.Uint32(), window: uint16(r.Uint32()), flags: packet.TCPPsh * uint8(i%2),
				options: [][]byte{nil, timestamps, fortyBytes}[r.IntN(3)], data: randomBytes(r, n),
			}.build(partial)
		} else {
			super = udpDatagram{ip: ip, data: randomBytes(r, n)}.build(partial)
		}
		t.Run(fmt.Sprintf("%d: protocol %d, %d bytes in pieces of %d", i, super.Protocol(), n, size), func(t *testing.T) {
			h := superHdr(super, size)
			for _, p := range cut(t, super, h) {
				c.Add(p, link)
			}
			got := c.Take()
			if len(got) != 1 || got[0].VNet != h {
				t.Fatalf("%d Supers, the first with %+v, want %+v", len(got), got[0].VNet, h)
			}
			if whole := bytes.Join(got[0].Parts, nil); !bytes.Equal(whole, super) {
				t.Errorf("% x …, want % x …", whole[:52], super[:52])
			}
		})
	}
}

func TestSegment_Allocs(t *testing.T) {
	tcp := tcpSegment{ip: ipv4{df: true}, options: timestamps, data: make([]byte, 64260)}.build(partial)
	udp := udpDatagram{data: make([]byte, 64000)}.build(partial)
	arena := make([]byte, 46*encap.MaxHdrLen)
	for name, tt := range map[string]struct {
		super packet.IPv4
		size  int
		count int
	}{"TCP": {tcp, 1428, 45}, "UDP": {udp, 1400, 46}} {
		h := superHdr(tt.super, tt.size)
		failed := 0
		allocs := testing.AllocsPerRun(100, func() {
			segments, ok := encap.Segment(tt.super, h)
			count, bytes := 0, 0
			for ok {
				hdr, payload := segments.Next(arena[count*encap.MaxHdrLen:])
				if hdr == nil {
					break
				}
				if packet.Sum(payload, packet.Sum(hdr[20:], packet.PseudoHeaderSum(hdr))) != 0xffff {
					failed++
				}
				count++
				bytes += len(payload)
			}
			if count != tt.count || bytes != len(tt.super)-int(h.HdrLen) {
				failed++
			}
		})
		if failed > 0 {
			t.Errorf("%s: %d times the work was not done", name, failed)
		}
		if allocs != 0 {
			t.Errorf("%s: %v allocations a run, want 0", name, allocs)
		}
	}
}
