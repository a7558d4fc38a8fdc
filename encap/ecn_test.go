package encap_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/stats"
)

// The codepoints of RFC 3168 §5.
const (
	notECT = 0b00
	ect1   = 0b01
	ect0   = 0b10
	ce     = 0b11
)

// ecnDrop marks the one cell of the table in which the packet is dropped.
const ecnDrop = 0xff

// ecnTable is the table of R5 and of RFC 6040 §4.2.
var ecnTable = []struct{ inner, outer, want uint8 }{
	{notECT, notECT, notECT}, {notECT, ect0, notECT}, {notECT, ect1, notECT}, {notECT, ce, ecnDrop},
	{ect0, notECT, ect0}, {ect0, ect0, ect0}, {ect0, ect1, ect1}, {ect0, ce, ce},
	{ect1, notECT, ect1}, {ect1, ect0, ect1}, {ect1, ect1, ect1}, {ect1, ce, ce},
	{ce, notECT, ce}, {ce, ect0, ce}, {ce, ect1, ce}, {ce, ce, ce},
}

func TestR5_ECN(t *testing.T) {
	const innerDSCP, outerDSCP = 0x48, 0xb4
	d := newDecapsulator(t)
	for _, tt := range ecnTable {
		for name, options := range map[string][]byte{"plain": nil, "options": {0x94, 4, 0, 0}} {
			t.Run(fmt.Sprintf("inner %02b outer %02b %s", tt.inner, tt.outer, name), func(t *testing.T) {
				inner := ipv4{tos: innerDSCP | tt.inner, options: options}
				outer := wrapTOS(outerDSCP|tt.outer, inner.bytes())
				if tt.want == ecnDrop {
					checkDrop(t, d, outer, stats.BadECN)
					return
				}
				// The table's ECN, the inner DSCP, the right checksum, and every
				// other byte unchanged.
				inner.tos = innerDSCP | tt.want
				got := mustDecap(t, d, outer)
				if diff := cmp.Diff([]byte(inner.bytes()), []byte(got)); diff != "" {
					t.Errorf("inner packet (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// The tunnel does not repair a damaged header: the checksum is patched by the
// difference, so that the receiver's check still fails.
func TestR5_WrongChecksumStaysWrong(t *testing.T) {
	d := newDecapsulator(t)
	for _, tt := range ecnTable {
		if tt.want == ecnDrop {
			continue
		}
		for _, damage := range []byte{0x01, 0x80, 0xff} {
			inner := ipv4{tos: 0x48 | tt.inner}.bytes()
			inner[10] ^= damage
			before := headerSum(inner)

			got := mustDecap(t, d, wrapTOS(tt.outer, inner))
			if after := headerSum(got); after != before || after == 0xffff {
				t.Errorf("inner %02b outer %02b: header sums to %#04x, before %#04x", tt.inner, tt.outer, after, before)
			}
		}
	}
}

// For every ID, the patched checksum equals a computed one, even if it is zero.
func TestR5_ChecksumOfEveryID(t *testing.T) {
	d := newDecapsulator(t)
	zeros := 0
	for id := range 0x10000 {
		inner := ipv4{tos: ect0, id: uint16(id), payload: []byte{}}
		outer := wrapTOS(ce, inner.bytes())
		inner.tos = ce
		want := inner.bytes()
		if got := mustDecap(t, d, outer); !bytes.Equal(got, want) {
			t.Fatalf("ID %#04x: % x, want % x", id, got, want)
		}
		if want.Checksum() == 0 {
			zeros++
		}
	}
	if zeros == 0 {
		t.Error("no header had the checksum 0")
	}
}

// If the path does not change the outer ECN field, the two tunnel ends do not change
// the inner one (T9 then R5).
func TestT9_R5_ECNSurvivesTheTunnel(t *testing.T) {
	e, d := newEncapsulator(t, encap.Outer{}), newDecapsulator(t)
	for _, ecn := range []uint8{notECT, ect0, ect1, ce} {
		inner := ipv4{tos: ecn}.bytes()
		want := bytes.Clone(inner)
		got := mustDecap(t, d, append(mustEncap(t, e, inner), inner...))
		if !bytes.Equal(got, want) {
			t.Errorf("ECN %02b came out as %02b", ecn, got.TOS()&3)
		}
	}
	// A router on the path marks CE: ECN-capable packets get the mark.
	for _, ecn := range []uint8{ect0, ect1, ce} {
		inner := ipv4{tos: ecn}.bytes()
		outer := append(mustEncap(t, e, inner), inner...)
		outer.RewriteTOS(ce)
		if got := mustDecap(t, d, outer); got.TOS() != ce || headerSum(got) != 0xffff {
			t.Errorf("ECN %02b, marked: %02b, header sums to %#04x", ecn, got.TOS()&3, headerSum(got))
		}
	}
}
