package packet_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/packet"
)

func TestIPv4_SetFragment(t *testing.T) {
	for _, before := range []byte{0x00, 0xff, 0x40, 0x20} {
		for _, mf := range []bool{false, true} {
			for offset := 0; offset <= 65528; offset += 8 {
				p := header(20, 20, 20)
				p[6], p[7] = before, before
				df := p.DF()
				rest := bytes.Clone(p)
				p.SetFragment(offset, mf)
				if p.FragmentOffset() != offset || p.MF() != mf || p.DF() != df {
					t.Fatalf("on %#02x: offset %d, MF %v, DF %v, want %d, %v, %v", before,
						p.FragmentOffset(), p.MF(), p.DF(), offset, mf, df)
				}
				rest[6], rest[7] = p[6], p[7]
				if !bytes.Equal(p, rest) {
					t.Fatalf("on %#02x, offset %d: another field changed: % x", before, offset, p)
				}
			}
		}
	}
}

// RFC 791 §3.1, as ip_options_fragment in net/ipv4/ip_options.c reads it.
func TestIPv4_DropUncopiedOptions(t *testing.T) {
	const end, noOp, copied, not = 0, 1, 0x82, 0x44
	tests := []struct {
		name          string
		options, want []byte
	}{
		{"none", nil, nil},
		{"padding", []byte{noOp, noOp, noOp, end}, []byte{noOp, noOp, noOp, end}},
		{"copied", []byte{copied, 4, 7, 7}, []byte{copied, 4, 7, 7}},
		{"not copied", []byte{not, 4, 7, 7}, []byte{noOp, noOp, noOp, noOp}},
		{"without data", []byte{not, 2, copied, 2}, []byte{noOp, noOp, copied, 2}},
		{"all of a kind", []byte{not, 3, 7, not, 3, 7, not, 2}, bytes.Repeat([]byte{noOp}, 8)},
		{"between copied ones", []byte{copied, 3, 7, not, 3, 7, copied, 2}, []byte{copied, 3, 7, noOp, noOp, noOp, copied, 2}},
		{"behind no-operations", []byte{noOp, not, 3, 7}, []byte{noOp, noOp, noOp, noOp}},
		{"behind the end", []byte{end, not, 3, 7}, []byte{end, not, 3, 7}},
		{"data like the end", []byte{copied, 4, end, end, not, 4, end, end}, []byte{copied, 4, end, end, noOp, noOp, noOp, noOp}},
		{"the longest", append([]byte{not, 40}, make([]byte, 38)...), bytes.Repeat([]byte{noOp}, 40)},
		{"length 0", []byte{not, 0, 7, 7}, []byte{not, 0, 7, 7}},
		{"length 1", []byte{not, 1, 7, 7}, []byte{not, 1, 7, 7}},
		{"length beyond the header", []byte{not, 5, 7, 7}, []byte{not, 5, 7, 7}},
		{"length missing", []byte{noOp, noOp, noOp, not}, []byte{noOp, noOp, noOp, not}},
		{"wrong after right", []byte{not, 3, 7, not, 9, 7, not, 2}, []byte{noOp, noOp, noOp, not, 9, 7, not, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hdrLen := packet.IPv4HdrLen + len(tt.options)
			p := header(hdrLen, hdrLen+4, hdrLen+4)
			copy(p[packet.IPv4HdrLen:], tt.options)
			copy(p[hdrLen:], []byte{not, 4, 7, 7}) // payload that looks like one
			want := append(bytes.Clone(p[:packet.IPv4HdrLen]), tt.want...)
			want = append(want, not, 4, 7, 7)
			p.DropUncopiedOptions()
			if diff := cmp.Diff(want, []byte(p)); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
			p.DropUncopiedOptions()
			if !bytes.Equal(p, want) {
				t.Errorf("the second time: % x", p)
			}
		})
	}
}

func FuzzDropUncopiedOptions(f *testing.F) {
	f.Add([]byte{0x44, 4, 5, 0, 0x94, 4, 0, 0})
	f.Add([]byte{1, 1, 1, 0x44})
	f.Add([]byte{0x07, 39})
	f.Fuzz(func(t *testing.T, options []byte) {
		options = options[:min(len(options), packet.IPv4MaxHdrLen-packet.IPv4HdrLen)&^3]
		p := header(packet.IPv4HdrLen+len(options), 60, 60)
		copy(p[packet.IPv4HdrLen:], options)
		before := bytes.Clone(p)
		p.DropUncopiedOptions()
		for i := range p {
			option := i >= packet.IPv4HdrLen && i < p.HdrLen()
			if p[i] != before[i] && !(option && p[i] == 1) {
				t.Fatalf("byte %d is %#02x, was %#02x in % x", i, p[i], before[i], before)
			}
		}
	})
}
