package encap_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
)

// icmpError returns the ICMP error about inner, or nil.
func icmpError(t testing.TB, inner packet.IPv4, icmpType, code uint8, mtu int) packet.IPv4 {
	t.Helper()
	before := bytes.Clone(inner)
	buf := bytes.Repeat([]byte{0xee}, encap.MaxICMPLen+1) // old contents
	p := encap.ICMPError(buf, inner, icmpType, code, mtu)
	if !bytes.Equal(inner, before) {
		t.Error("the packet changed")
	}
	if buf[encap.MaxICMPLen] != 0xee {
		t.Errorf("it wrote more than %d bytes", encap.MaxICMPLen)
	}
	if p != nil && &p[0] != &buf[0] {
		t.Error("the message is not in the memory that was given for it")
	}
	return p
}

// checkICMPError fails unless p is an error about inner, of any type, that follows
// RFC 1812 §4.3.2.
func checkICMPError(t testing.TB, p, inner packet.IPv4) {
	t.Helper()
	if !p.Valid() || p.TotalLength() != len(p) || headerSum(p) != 0xffff {
		t.Fatalf("% x: not a packet", p)
	}
	type header struct {
		HdrLen, FragmentOffset int
		MF                     bool
		TTL, TOS, Protocol     uint8
		Source, Destination    [4]byte
		Sum                    uint16
	}
	got := header{
		p.HdrLen(), p.FragmentOffset(), p.MF(), p.TTL(), p.TOS(), p.Protocol(), p.Source(), p.Destination(),
		packet.Sum(p.Payload(), 0),
	}
	want := header{
		packet.IPv4HdrLen, 0, false, 64, 0xc0 | inner.TOS()&0x1e, packet.ProtoICMP, inner.Destination(), inner.Source(), 0xffff,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	quote := p.Payload()[packet.ICMPHdrLen:]
	whole := inner[:min(inner.TotalLength(), len(inner))] // padding is not part of the packet
	if n := min(len(whole), 576-packet.IPv4HdrLen-packet.ICMPHdrLen); len(quote) != n || !bytes.Equal(quote, whole[:n]) {
		t.Errorf("it quotes %d bytes, want the first %d of %d; % x", len(quote), n, len(whole), quote)
	}
}

// Made by hand.
func TestGolden_ICMPError(t *testing.T) {
	want := unhex(t, `
		45 c0 0040        // version 4, IHL 5; internetwork control; total length 64 = 20 + 8 + 36
		0000 0000         // ID, flags
		40 01 65fb        // TTL 64; ICMP; checksum
		0a000002          // 10.0.0.2, where the packet was going
		0a000001          // 10.0.0.1, its sender
		03 04 f797        // fragmentation needed; checksum
		0000 0564         // next hop's MTU 1380
	`+goldenRequest)
	got := icmpError(t, unhex(t, goldenRequest), packet.ICMPUnreachable, packet.ICMPCodeFragNeeded, 1380)
	if diff := cmp.Diff(want, []byte(got)); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

func TestG7_TypeCodeAndMTU(t *testing.T) {
	inner := ipv4{df: true}.bytes()
	for _, tt := range []struct {
		icmpType, code uint8
		mtu            int
	}{
		{3, 4, 68}, {3, 4, 1380}, {3, 4, 65515}, {3, 1, 0}, {11, 0, 0},
	} {
		p := icmpError(t, inner, tt.icmpType, tt.code, tt.mtu)
		checkICMPError(t, p, inner)
		m := p.Payload()
		if m[0] != tt.icmpType || m[1] != tt.code || m[4] != 0 || m[5] != 0 || int(m[6])<<8|int(m[7]) != tt.mtu {
			t.Errorf("%d/%d mtu %d: header % x", tt.icmpType, tt.code, tt.mtu, m[:packet.ICMPHdrLen])
		}
	}
}

func TestG7_Quote(t *testing.T) {
	r := rand.New(rand.NewPCG(792, 1812))
	for _, n := range []int{0, 1, 8, 527, 528, 529, 1460, 65495} { // 528 more bytes than a header fill 576
		inner := ipv4{proto: packet.ProtoUDP, payload: randomBytes(r, n)}.bytes()
		p := icmpError(t, inner, packet.ICMPUnreachable, packet.ICMPCodeHost, 0)
		checkICMPError(t, p, inner)
		if want := min(20+8+20+n, 576); len(p) != want {
			t.Errorf("payload of %d bytes: message of %d, want %d", n, len(p), want)
		}
	}
	padded := append(ipv4{}.bytes(), 1, 2, 3)
	checkICMPError(t, icmpError(t, padded, 3, 1, 0), padded)
	options := ipv4{proto: packet.ProtoTCP, options: make([]byte, 40), payload: randomBytes(r, 1000)}.bytes()
	checkICMPError(t, icmpError(t, options, 3, 1, 0), options)
	// The packet may be cut short, as it is in another ICMP error (E).
	for _, n := range []int{20, 27, 28, 500} {
		quoted := ipv4{proto: packet.ProtoTCP, payload: randomBytes(r, 1000)}.bytes()[:n]
		checkICMPError(t, icmpError(t, quoted, 3, 1, 0), quoted)
	}
}

func TestG7_TOS(t *testing.T) {
	for tos := range 0x100 {
		inner := ipv4{tos: uint8(tos)}.bytes()
		checkICMPError(t, icmpError(t, inner, 3, 1, 0), inner)
	}
}

// RFC 1122 §3.2.2: never about an ICMP error. An unknown type may be one.
func TestG7_AboutICMP(t *testing.T) {
	queries := map[int]bool{0: true, 8: true, 13: true, 14: true, 15: true, 16: true, 17: true, 18: true}
	for typ := range 0x100 {
		inner := ipv4{payload: []byte{byte(typ), 0, 0, 0, 0, 0, 0, 0}}.bytes()
		if p := icmpError(t, inner, 3, 1, 0); (p != nil) != queries[typ] {
			t.Errorf("about ICMP type %d: % x", typ, p)
		}
		other := ipv4{proto: packet.ProtoUDP, payload: []byte{byte(typ), 0, 0, 0, 0, 0, 0, 0}}.bytes()
		if icmpError(t, other, 3, 1, 0) == nil {
			t.Errorf("about UDP that begins with %d: nothing", typ)
		}
	}
	if p := icmpError(t, ipv4{payload: []byte{}}.bytes(), 3, 1, 0); p != nil {
		t.Errorf("about ICMP without a type: % x", p)
	}
	// The type stands behind the options.
	if p := icmpError(t, ipv4{options: make([]byte, 4), payload: []byte{3, 1, 0, 0}}.bytes(), 3, 1, 0); p != nil {
		t.Errorf("about an ICMP error with options: % x", p)
	}
	if icmpError(t, ipv4{options: []byte{3, 1, 1, 1}}.bytes(), 3, 1, 0) == nil {
		t.Error("about echo with options: nothing")
	}
}

func TestG7_AboutFragments(t *testing.T) {
	udp := ipv4{proto: packet.ProtoUDP, payload: make([]byte, 64)}
	for name, tt := range map[string]struct {
		mf     bool
		offset int
		want   bool
	}{
		"whole": {false, 0, true}, "first": {true, 0, true},
		"second": {true, 8, false}, "last": {false, 8, false}, "far": {false, 65528, false},
	} {
		udp.mf, udp.offset = tt.mf, tt.offset
		if p := icmpError(t, udp.bytes(), 3, 4, 1400); (p != nil) != tt.want {
			t.Errorf("about the fragment %s: % x", name, p)
		}
	}
}

func TestG7_Addresses(t *testing.T) {
	tests := []struct {
		addr string
		want bool
	}{
		{"0.0.0.0", false}, {"0.1.2.3", false}, {"127.0.0.1", false}, {"127.255.255.255", false},
		{"224.0.0.0", false}, {"224.0.0.5", false}, {"239.255.255.255", false},
		{"240.0.0.1", false}, {"255.255.255.255", false},
		{"1.0.0.0", true}, {"126.255.255.255", true}, {"128.0.0.1", true}, {"223.255.255.255", true},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			for role, inner := range map[string]ipv4{"source": {src: tt.addr}, "destination": {dst: tt.addr}} {
				if p := icmpError(t, inner.bytes(), 3, 1, 0); (p != nil) != tt.want {
					t.Errorf("as %s: % x", role, p)
				}
			}
		})
	}
}

func TestG7_AboutGarbage(t *testing.T) {
	whole := ipv4{}.bytes()
	change := func(f func(packet.IPv4)) packet.IPv4 {
		p := packet.IPv4(bytes.Clone(whole))
		f(p)
		return p
	}
	options := ipv4{options: make([]byte, 40)}.bytes()
	for name, inner := range map[string]packet.IPv4{
		"nothing": nil, "half a header": whole[:19], "half of its options": options[:59],
		"IPv6":                   append(packet.IPv4{0x60}, make([]byte, 47)...),
		"IHL 4":                  change(func(p packet.IPv4) { p[0] = 0x44 }),
		"IHL 15":                 change(func(p packet.IPv4) { p[0] = 0x4f }),
		"total length":           change(func(p packet.IPv4) { putWord(p, 2, 19) }),
		"just a header, of ICMP": whole[:packet.IPv4HdrLen],
	} {
		if p := icmpError(t, inner, 3, 1, 0); p != nil {
			t.Errorf("about %s: % x", name, p)
		}
	}
}

func FuzzICMPError(f *testing.F) {
	f.Add([]byte(ipv4{}.bytes()), uint8(3), uint8(4), uint16(1380))
	f.Add([]byte(ipv4{df: true, tos: 0xff, payload: make([]byte, 1460)}.bytes()), uint8(3), uint8(1), uint16(0))
	f.Add([]byte(ipv4{payload: []byte{3, 1, 0, 0}}.bytes()), uint8(3), uint8(1), uint16(0))
	f.Add([]byte(ipv4{options: make([]byte, 40)}.bytes()), uint8(11), uint8(0), uint16(0))
	f.Add([]byte(ipv4{dst: "224.0.0.5", offset: 8}.bytes()), uint8(3), uint8(4), uint16(0))
	f.Add([]byte{}, uint8(0), uint8(0), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, icmpType, code uint8, mtu uint16) {
		inner := packet.IPv4(b)
		p := icmpError(t, inner, icmpType, code, int(mtu))
		if p == nil {
			return
		}
		if len(inner) < packet.IPv4HdrLen || len(inner) < inner.HdrLen() || inner.FragmentOffset() != 0 {
			t.Fatalf("about % x", b)
		}
		checkICMPError(t, p, inner)
		// The receiver accepts it: it is no martian, and not about another error.
		for _, a := range [][4]byte{p.Source(), p.Destination()} {
			if a[0] == 0 || a[0] == 127 || a[0] >= 224 {
				t.Errorf("address %v", a)
			}
		}
		if again := icmpError(t, p, 3, 1, 0); again != nil && packet.IsICMPError(icmpType) {
			t.Errorf("an error about an error: % x", again)
		}
	})
}
