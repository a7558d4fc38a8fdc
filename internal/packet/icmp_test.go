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
