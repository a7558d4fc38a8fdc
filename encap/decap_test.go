package encap_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/packet"
	"goipip/internal/stats"
)

func TestR4_InnerHeader(t *testing.T) {
	whole := ipv4{payload: []byte("12345678")}.bytes() // 28 bytes
	change := func(f func(packet.IPv4)) packet.IPv4 {
		p := packet.IPv4(bytes.Clone(whole))
		f(p)
		return p
	}
	tests := []struct {
		name  string
		inner packet.IPv4
		want  stats.Reason
	}{
		{"empty", packet.IPv4{}, stats.Malformed},
		{"one byte", whole[:1], stats.Malformed},
		{"19 bytes", whole[:19], stats.Malformed},
		{"IPv6", append(packet.IPv4{0x60}, make([]byte, 47)...), stats.Malformed},
		{"version 0", change(func(p packet.IPv4) { p[0] = 0x05 }), stats.Malformed},
		{"version 5", change(func(p packet.IPv4) { p[0] = 0x55 }), stats.Malformed},
		{"IHL 0", change(func(p packet.IPv4) { p[0] = 0x40 }), stats.Malformed},
		{"IHL 4", change(func(p packet.IPv4) { p[0] = 0x44 }), stats.Malformed},
		{"IHL 15, beyond the packet", change(func(p packet.IPv4) { p[0] = 0x4f }), stats.Malformed},
		{"IHL 8, beyond the packet", change(func(p packet.IPv4) { p[0] = 0x48 }), stats.Malformed},
		{"IHL 7, ends with the packet", change(func(p packet.IPv4) { p[0] = 0x47 }), stats.Deliver},
		{"IHL 7, beyond the total length", change(func(p packet.IPv4) { p[0] = 0x47; p.SetTotalLength(24) }), stats.Malformed},
		{"total length 0", change(func(p packet.IPv4) { p.SetTotalLength(0) }), stats.Malformed},
		{"total length 19", change(func(p packet.IPv4) { p.SetTotalLength(19) }), stats.Malformed},
		{"total length one beyond", change(func(p packet.IPv4) { p.SetTotalLength(29) }), stats.Malformed},
		{"total length far beyond", change(func(p packet.IPv4) { p.SetTotalLength(65535) }), stats.Malformed},
		{"payload cut off", whole[:27], stats.Malformed},
		{"header only", ipv4{payload: []byte{}}.bytes(), stats.Deliver},
		{"whole", whole, stats.Deliver},
	}
	d := newDecapsulator(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want != stats.Deliver {
				checkDrop(t, d, wrap(tt.inner), tt.want)
				return
			}
			got := mustDecap(t, d, wrap(tt.inner))
			if diff := cmp.Diff([]byte(tt.inner), []byte(got)); diff != "" {
				t.Errorf("inner packet (-want +got):\n%s", diff)
			}
		})
	}
}

// Ethernet pads short frames: bytes behind the total length are not the packet's.
func TestR4_PaddingIsTrimmed(t *testing.T) {
	d := newDecapsulator(t)
	inner := ipv4{}.bytes()
	for _, padding := range []int{1, 6, 100} {
		padded := append(bytes.Clone(inner), bytes.Repeat([]byte{0xee}, padding)...)
		if diff := cmp.Diff([]byte(inner), []byte(mustDecap(t, d, wrap(padded)))); diff != "" {
			t.Errorf("%d bytes of padding within the outer packet (-want +got):\n%s", padding, diff)
		}
		behind := append(wrap(inner), bytes.Repeat([]byte{0xee}, padding)...)
		if diff := cmp.Diff([]byte(inner), []byte(mustDecap(t, d, behind))); diff != "" {
			t.Errorf("%d bytes of padding behind the outer packet (-want +got):\n%s", padding, diff)
		}
	}
}

// The inner packet may not extend beyond the outer one.
func TestR4_InnerBeyondOuter(t *testing.T) {
	outer := wrap(ipv4{}.bytes())
	outer.SetTotalLength(len(outer) - 1)
	outer.UpdateChecksum()
	checkDrop(t, newDecapsulator(t), outer, stats.Malformed)
}

func TestR4_OuterOptionsAreSkipped(t *testing.T) {
	inner := ipv4{options: []byte{1, 1, 1, 0}}.bytes()
	outer := ipv4{
		src: local.String(), dst: remote.String(), proto: packet.ProtoIPIP,
		options: bytes.Repeat([]byte{0x45}, 40), payload: inner, // 0x45 would pass for an inner header
	}.bytes()
	if diff := cmp.Diff([]byte(inner), []byte(mustDecap(t, newDecapsulator(t), outer))); diff != "" {
		t.Errorf("inner packet (-want +got):\n%s", diff)
	}
}

// A raw socket returns whole outer packets, but Decap does not rely on it.
func TestR4_OuterCut(t *testing.T) {
	outer := wrap(ipv4{}.bytes())
	d := newDecapsulator(t)
	for n := range len(outer) {
		if inner, v := d.Decap(outer[:n:n]); v == stats.Deliver {
			t.Errorf("cut to %d of %d bytes: delivered % x", n, len(outer), inner)
		}
	}
}

// Fragments, and packets of other protocols, are malformed.
func TestR1_NotAWholeIPIPPacket(t *testing.T) {
	inner := ipv4{}.bytes()
	as := func(s ipv4) packet.IPv4 {
		s.src, s.dst, s.payload = local.String(), remote.String(), inner
		return s.bytes()
	}
	d := newDecapsulator(t)
	mustDecap(t, d, as(ipv4{proto: packet.ProtoIPIP}))
	for name, outer := range map[string]packet.IPv4{
		"first fragment":  as(ipv4{proto: packet.ProtoIPIP, mf: true}),
		"middle fragment": as(ipv4{proto: packet.ProtoIPIP, mf: true, offset: 1480}),
		"last fragment":   as(ipv4{proto: packet.ProtoIPIP, offset: 1480}),
		"IPv6 in IPv4":    as(ipv4{proto: 41}),
		"UDP":             as(ipv4{proto: packet.ProtoUDP}),
	} {
		t.Run(name, func(t *testing.T) { checkDrop(t, d, outer, stats.Malformed) })
	}
}

func TestR7_OuterDSCPIsNotCopied(t *testing.T) {
	d := newDecapsulator(t)
	for dscp := 0; dscp < 0x100; dscp += 4 {
		inner := mustDecap(t, d, wrapTOS(uint8(dscp)|2, ipv4{tos: 0xb8 | 2}.bytes()))
		if inner.TOS() != 0xb8|2 {
			t.Errorf("outer DSCP %#02x: inner TOS %#02x, want %#02x", dscp, inner.TOS(), 0xb8|2)
		}
	}
}

// The payload is never copied: the inner packet shares the memory of the outer one.
func TestDecap_NoCopy(t *testing.T) {
	outer := wrap(ipv4{}.bytes())
	inner := mustDecap(t, newDecapsulator(t), outer)
	inner[len(inner)-1] ^= 0xff
	if outer[len(outer)-1] != inner[len(inner)-1] {
		t.Error("the inner packet is a copy")
	}
}

// A packet that breaks two rules counts under the first of G1, R4, R5 and G2.
func TestR_Order(t *testing.T) {
	const ce = 3
	fromElsewhere := func(outer packet.IPv4) packet.IPv4 {
		outer.SetSource([4]byte{203, 0, 113, 9})
		outer.UpdateChecksum()
		return outer
	}
	tests := []struct {
		name  string
		outer packet.IPv4
		want  stats.Reason
	}{
		{"wrong peer, malformed", fromElsewhere(wrap([]byte{0x60})), stats.WrongPeer},
		{"wrong peer, bad ECN", fromElsewhere(wrapTOS(ce, ipv4{}.bytes())), stats.WrongPeer},
		{"wrong peer, martian", fromElsewhere(wrap(ipv4{src: "127.0.0.1"}.bytes())), stats.WrongPeer},
		{"wrong peer, TTL 0", fromElsewhere(wrap(ipv4{ttl: -1}.bytes())), stats.WrongPeer},
		{"malformed, bad ECN", wrapTOS(ce, ipv4{}.bytes()[:35]), stats.Malformed},
		{"bad ECN, martian", wrapTOS(ce, ipv4{src: "127.0.0.1"}.bytes()), stats.BadECN},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkDrop(t, newDecapsulator(t), tt.outer, tt.want) })
	}
}

func TestG3_TTLZeroIsDiscarded(t *testing.T) {
	d := newDecapsulator(t)
	checkDrop(t, d, wrap(ipv4{ttl: -1}.bytes()), stats.TTLExpired)
	// A TTL of 1 is enough: only forwarding decrements it (O9).
	if got := mustDecap(t, d, wrap(ipv4{ttl: 1}.bytes())).TTL(); got != 1 {
		t.Errorf("inner TTL %d, want 1", got)
	}
}
