package packet_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/packet"
)

func TestIsICMPError(t *testing.T) {
	// RFC 792, 950, 1256 and icmp_pointers in net/ipv4/icmp.c.
	questions := []uint8{0, 8, 13, 14, 15, 16, 17, 18}
	for typ := range 0x100 {
		want := !bytes.Contains(questions, []byte{byte(typ)})
		if got := packet.IsICMPError(uint8(typ)); got != want {
			t.Errorf("IsICMPError(%d) = %v, want %v", typ, got, want)
		}
	}
}

func TestICMP_InitError(t *testing.T) {
	tests := []struct {
		name           string
		icmpType, code uint8
		mtu            int
		quote          []byte
		want           []byte // the header
	}{
		{"nothing quoted", 3, 1, 0, nil, []byte{3, 1, 0xfc, 0xfe, 0, 0, 0, 0}},
		{"mtu", 3, 4, 1380, nil, []byte{3, 4, 0xf7, 0x97, 0, 0, 0x05, 0x64}},
		{"largest mtu", 3, 4, 0xffff, nil, []byte{3, 4, 0xfc, 0xfb, 0, 0, 0xff, 0xff}},
		{"quote", 11, 0, 0, []byte{0x45, 0, 0, 1}, []byte{11, 0, 0xaf, 0xfe, 0, 0, 0, 0}},
		{"odd quote", 11, 0, 0, []byte{0x45, 0, 1}, []byte{11, 0, 0xae, 0xff, 0, 0, 0, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := packet.ICMP(append(bytes.Repeat([]byte{0xee}, packet.ICMPHdrLen), tt.quote...)) // old contents
			m.InitError(tt.icmpType, tt.code, tt.mtu)
			if diff := cmp.Diff(append(bytes.Clone(tt.want), tt.quote...), []byte(m)); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
			if sum := slowSum(m, 0); sum != 0xffff {
				t.Errorf("it sums to %#04x", sum)
			}
			if m.Type() != tt.icmpType || m.Code() != tt.code {
				t.Errorf("type %d, code %d, want %d, %d", m.Type(), m.Code(), tt.icmpType, tt.code)
			}
		})
	}
}

func TestICMP_Valid(t *testing.T) {
	whole := packet.ICMP{3, 4, 0xf7, 0x97, 0, 0, 0x05, 0x64}
	changed := bytes.Clone(whole)
	changed[7]++
	quoting := packet.ICMP{11, 0, 0xaf, 0xfe, 0, 0, 0, 0, 0x45, 0, 0, 1}
	tests := []struct {
		name string
		m    packet.ICMP
		want bool
	}{
		{"header", whole, true},
		{"quote", quoting, true},
		{"changed", changed, false},
		{"zeros", make(packet.ICMP, 8), false},
		{"quote cut", quoting[:10], false},
		{"half a header", packet.ICMP{3, 1, 0xfc, 0xfe}, false}, // its sum is right
		{"nothing", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.m.Valid(); got != tt.want {
				t.Errorf("Valid = %v, want %v", got, tt.want)
			}
		})
	}
	if got := whole.MTU(); got != 1380 {
		t.Errorf("MTU = %d, want 1380", got)
	}
	if got := whole.Quote(); len(got) != 0 {
		t.Errorf("quote % x of a header alone", []byte(got))
	}
	if diff := cmp.Diff([]byte{0x45, 0, 0, 1}, []byte(quoting.Quote())); diff != "" {
		t.Errorf("quote (-want +got):\n%s", diff)
	}
}

func TestIPv4_HasHeader(t *testing.T) {
	header := func(first byte, n int) packet.IPv4 {
		p := make(packet.IPv4, n) // with a total length of 0
		if n > 0 {
			p[0] = first
		}
		return p
	}
	tests := []struct {
		first byte
		n     int
		want  bool
	}{
		{0x45, 20, true}, {0x45, 28, true}, {0x46, 24, true}, {0x4f, 60, true},
		{0, 0, false}, {0x45, 19, false}, {0x46, 23, false}, {0x4f, 59, false},
		{0x44, 20, false}, {0x40, 20, false}, {0x65, 20, false}, {0x55, 40, false},
	}
	for _, tt := range tests {
		if got := header(tt.first, tt.n).HasHeader(); got != tt.want {
			t.Errorf("HasHeader of %d bytes from %#02x on = %v, want %v", tt.n, tt.first, got, tt.want)
		}
	}
}

func TestICMP_InitEcho(t *testing.T) {
	m := packet.ICMP("........ab")
	m.InitEcho(packet.ICMPEcho, 0x1234, 7)
	want := []byte{8, 0, 0x84, 0x62, 0x12, 0x34, 0, 7, 'a', 'b'}
	if !bytes.Equal(m, want) || !m.Valid() || m.ID() != 0x1234 || string(m.Data()) != "ab" {
		t.Errorf("message %x, want %x", []byte(m), want)
	}
}
