package encap_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
)

// fragment returns the fragments of p, header and payload in one.
func fragment(t testing.TB, p packet.IPv4, mtu int) []packet.IPv4 {
	t.Helper()
	before := bytes.Clone(p)
	var all []packet.IPv4
	fragments := encap.Fragment(p[:p.HdrLen()], p.Payload(), mtu)
	for {
		hdr, payload := fragments.Next(make([]byte, packet.IPv4MaxHdrLen))
		if hdr == nil {
			break
		}
		all = append(all, append(bytes.Clone(hdr), payload...))
		if len(all) > len(p)/8+1 {
			t.Fatalf("a packet of %d bytes gives more than %d fragments", len(p), len(all))
		}
	}
	if !bytes.Equal(p, before) {
		t.Error("the packet changed")
	}
	return all
}

// checkFragments fails unless all are valid fragments of p for a next hop with mtu.
func checkFragments(t testing.TB, p packet.IPv4, mtu int, all []packet.IPv4) {
	t.Helper()
	for i, f := range all {
		last := i == len(all)-1
		switch {
		case !f.Valid() || f.TotalLength() != len(f):
			t.Fatalf("fragment %d is not valid: % x", i, f[:min(len(f), packet.IPv4MaxHdrLen)])
		case len(f) > mtu:
			t.Errorf("fragment %d has %d bytes, mtu %d", i, len(f), mtu)
		case headerSum(f) != 0xffff:
			t.Errorf("fragment %d: header sums to %#04x", i, headerSum(f))
		case len(f.Payload())%8 != 0 && !last:
			t.Errorf("fragment %d of %d carries %d bytes, no multiple of 8", i, len(all), len(f.Payload()))
		case len(f.Payload()) == 0:
			t.Errorf("fragment %d carries nothing", i)
		case f.MF() != (!last || p.MF()):
			t.Errorf("fragment %d of %d: MF %v, of the packet %v", i, len(all), f.MF(), p.MF())
		case f.HdrLen() != p.HdrLen():
			t.Errorf("fragment %d: header of %d bytes, of the packet %d", i, f.HdrLen(), p.HdrLen())
		}
		if diff := cmp.Diff(constant(p), constant(f)); diff != "" {
			t.Errorf("fragment %d (-packet +fragment):\n%s", i, diff)
		}
	}
}

// constant returns the header fields that all fragments of a packet have in common
// (RFC 791 §3.2), except options.
func constant(p packet.IPv4) any {
	type header struct {
		TOS, TTL, Protocol  uint8
		ID                  uint16
		DF                  bool
		Source, Destination [4]byte
	}
	return header{p.TOS(), p.TTL(), p.Protocol(), p.ID(), p.DF(), p.Source(), p.Destination()}
}

// reassemble returns the payload of the packet from its fragments in any order (RFC
// 791 §3.2). It shares no code with the code under test.
func reassemble(t testing.TB, first int, fragments []packet.IPv4) []byte {
	t.Helper()
	var payload []byte
	var covered []bool
	for _, f := range fragments {
		at := f.FragmentOffset() - first
		if at < 0 {
			t.Fatalf("offset %d, that of the packet is %d", f.FragmentOffset(), first)
		}
		data := f[f.HdrLen():]
		if need := at + len(data) - len(payload); need > 0 {
			payload = append(payload, make([]byte, need)...)
			covered = append(covered, make([]bool, need)...)
		}
		for i := range data {
			if covered[at+i] {
				t.Fatalf("byte %d comes twice", at+i)
			}
			payload[at+i], covered[at+i] = data[i], true
		}
	}
	for i, ok := range covered {
		if !ok {
			t.Fatalf("byte %d is missing", i)
		}
	}
	return payload
}

func TestT12_FragmentPlaces(t *testing.T) {
	type place struct {
		Offset, Payload int
		MF              bool
	}
	ninth := make([]byte, 4) // makes the header 24 bytes long: four times end of options
	tests := []struct {
		name string
		p    ipv4
		n    int // payload, in bytes
		mtu  int
		want []place
	}{
		{"fits", ipv4{}, 1480, 1500, []place{{0, 1480, false}}},
		{"one byte too long", ipv4{}, 1481, 1500, []place{{0, 1480, true}, {1480, 1, false}}},
		{"three", ipv4{}, 3000, 1500, []place{{0, 1480, true}, {1480, 1480, true}, {2960, 40, false}}},
		{"twice the room", ipv4{}, 2960, 1500, []place{{0, 1480, true}, {1480, 1480, false}}},
		{"room not a multiple of 8", ipv4{}, 1480, 1499, []place{{0, 1472, true}, {1472, 8, false}}},
		{"room of 7 more", ipv4{}, 40, 20 + 16 + 7, []place{{0, 16, true}, {16, 16, true}, {32, 8, false}}},
		// All fragments but the last carry a multiple of 8 bytes, even if all would fit.
		{"last one longer than a multiple of 8", ipv4{}, 20, 20 + 12, []place{{0, 8, true}, {8, 8, true}, {16, 4, false}}},
		{"mtu 68", ipv4{}, 100, 68, []place{{0, 48, true}, {48, 48, true}, {96, 4, false}}},
		{"smallest mtu", ipv4{}, 17, 28, []place{{0, 8, true}, {8, 8, true}, {16, 1, false}}},
		{"options", ipv4{options: ninth}, 64, 68, []place{{0, 40, true}, {40, 24, false}}},
		{"longest header, mtu 68", ipv4{options: make([]byte, 40)}, 20, 68, []place{{0, 8, true}, {8, 8, true}, {16, 4, false}}},
		{"first fragment", ipv4{mf: true}, 96, 68, []place{{0, 48, true}, {48, 48, true}}},
		{"middle fragment", ipv4{mf: true, offset: 1480}, 96, 68, []place{{1480, 48, true}, {1528, 48, true}}},
		{"last fragment", ipv4{offset: 2960}, 50, 68, []place{{2960, 48, true}, {3008, 2, false}}},
		{"up to the last byte of all", ipv4{offset: 65528 - 64}, 71, 68, []place{{65464, 48, true}, {65512, 23, false}}},
		{"no payload", ipv4{}, 0, 68, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.payload = randomBytes(rand.New(rand.NewPCG(791, uint64(tt.n))), tt.n)
			tt.p.id, tt.p.tos, tt.p.ttl = 0xbeef, 0xb9, 7
			p := tt.p.bytes()
			all := fragment(t, p, tt.mtu)
			checkFragments(t, p, tt.mtu, all)
			var got []place
			for _, f := range all {
				got = append(got, place{f.FragmentOffset(), len(f.Payload()), f.MF()})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("fragments (-want +got):\n%s", diff)
			}
			if !bytes.Equal(reassemble(t, tt.p.offset, all), tt.p.payload) {
				t.Error("reassembled, it is something else")
			}
		})
	}
}

// A packet that fits is its only fragment, unchanged.
func TestT12_FragmentOfOne(t *testing.T) {
	p := ipv4{id: 9, options: []byte{7, 3, 4, 0}}.bytes()
	all := fragment(t, p, len(p))
	if len(all) != 1 || !bytes.Equal(all[0], p) {
		t.Errorf("fragments % x, want % x", all, p)
	}
}

// The longest packet, down to the smallest MTU of a link, and fragments that the next
// router fragments again.
func TestT12_FragmentTheLongest(t *testing.T) {
	r := rand.New(rand.NewPCG(791, 12))
	for _, mtus := range [][]int{{1500}, {68}, {65534}, {1500, 576}, {9000, 1500, 68}, {576, 576}, {999, 555, 333}} {
		t.Run(fmt.Sprint(mtus), func(t *testing.T) {
			p := ipv4{id: 1, payload: randomBytes(r, packet.IPv4MaxLen-packet.IPv4HdrLen)}.bytes()
			all := []packet.IPv4{p}
			for _, mtu := range mtus {
				var next []packet.IPv4
				for _, f := range all {
					pieces := fragment(t, f, mtu)
					checkFragments(t, f, mtu, pieces)
					next = append(next, pieces...)
				}
				all = next
			}
			r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			if !bytes.Equal(reassemble(t, 0, all), p.Payload()) {
				t.Error("reassembled, it is something else")
			}
		})
	}
}

func TestT12_FragmentLeavesDF(t *testing.T) {
	for _, df := range []bool{false, true} {
		p := ipv4{df: df, payload: make([]byte, 100)}.bytes()
		checkFragments(t, p, 68, fragment(t, p, 68))
	}
}

// RFC 791 §3.1: an option with the copied flag is in all fragments. As in Linux,
// later fragments have no-operations in place of the others, and a header of the same
// length.
func TestT12_FragmentOptions(t *testing.T) {
	const (
		routerAlert = "94 04 00 00"        // copied (RFC 2113)
		recordRoute = "07 07 04 000000 00" // not copied, with one address of room
		timestamp   = "44 04 05 00"        // not copied
		security    = "82 03 55"           // copied
	)
	tests := []struct{ name, first, later string }{
		{"none", "", ""},
		{"copied", routerAlert, routerAlert},
		{"not copied", timestamp, "01 01 01 01"},
		{"mixed", recordRoute + security + "01 01", "01 01 01 01 01 01 01" + security + "01 01"},
		{"copied behind not copied", timestamp + routerAlert, "01 01 01 01" + routerAlert},
		{"behind the end", "94 04 00 00  00  44 03 00", "94 04 00 00  00  44 03 00"},
		{"no length", "01 01 01 44", "01 01 01 44"},
		{"length 0", "44 00 01 02", "44 00 01 02"},
		{"length 1", "44 01 01 02", "44 01 01 02"},
		{"length beyond the header", timestamp + "44 05 00 00", "01 01 01 01 44 05 00 00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := ipv4{options: unhex(t, tt.first), payload: make([]byte, 48)}.bytes()
			mtu := p.HdrLen() + 16
			all := fragment(t, p, mtu)
			checkFragments(t, p, mtu, all)
			if len(all) != 3 {
				t.Fatalf("%d fragments, want 3", len(all))
			}
			for i, want := range []string{tt.first, tt.later, tt.later} {
				got := []byte(all[i][packet.IPv4HdrLen:all[i].HdrLen()])
				if diff := cmp.Diff(unhex(t, want), got, cmpEmpty); diff != "" {
					t.Errorf("options of fragment %d (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}

// cmpEmpty has a slice without elements equal nil.
var cmpEmpty = cmp.Transformer("bytes", func(b []byte) string { return string(b) })

// The memory for the header has old contents.
func TestT12_FragmentIntoUsedMemory(t *testing.T) {
	p := ipv4{payload: make([]byte, 40)}.bytes()
	fragments := encap.Fragment(p[:p.HdrLen()], p.Payload(), 44)
	buf := bytes.Repeat([]byte{0xee}, encap.MaxHdrLen)
	for i := range 2 {
		hdr, payload := fragments.Next(buf)
		if len(hdr) != packet.IPv4HdrLen || headerSum(hdr) != 0xffff || &hdr[0] != &buf[0] {
			t.Errorf("fragment %d has the header % x", i, hdr)
		}
		if &payload[0] != &p.Payload()[24*i] {
			t.Errorf("the payload of fragment %d is a copy", i)
		}
		if cap(payload) != len(payload) {
			t.Errorf("an append to the payload of fragment %d would write into the packet", i)
		}
		if !bytes.Equal(buf[packet.IPv4HdrLen:], bytes.Repeat([]byte{0xee}, len(buf)-packet.IPv4HdrLen)) {
			t.Errorf("fragment %d: something behind the header was written", i)
		}
	}
	for range 2 {
		if hdr, payload := fragments.Next(buf); hdr != nil || payload != nil {
			t.Errorf("after the last one: % x, % x", hdr, payload)
		}
	}
	var none encap.Fragments
	if hdr, _ := none.Next(buf); hdr != nil {
		t.Errorf("of the zero value: % x", hdr)
	}
}

func FuzzFragment(f *testing.F) {
	f.Add([]byte(ipv4{payload: make([]byte, 3000)}.bytes()), 1500)
	f.Add([]byte(ipv4{payload: make([]byte, 100), df: true}.bytes()), 68)
	f.Add([]byte(ipv4{payload: make([]byte, 100), offset: 1480, mf: true, options: make([]byte, 40)}.bytes()), 68)
	f.Add([]byte(ipv4{payload: make([]byte, 100), options: []byte{7, 3, 4, 0x94, 4, 0, 0, 1}}.bytes()), 60)
	f.Add([]byte(ipv4{payload: make([]byte, 100), offset: 65528}.bytes()), 68)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		p := packet.IPv4(b)
		if !p.Valid() {
			return
		}
		p = p[:p.TotalLength()]
		mtu = min(max(mtu, p.HdrLen()+8), packet.IPv4MaxLen)
		all := fragment(t, p, mtu)
		if p.FragmentOffset()+len(p.Payload()) > packet.IPv4MaxLen {
			return // no packet has such a fragment; it is enough not to panic
		}
		checkFragments(t, p, mtu, all)
		if !bytes.Equal(reassemble(t, p.FragmentOffset(), all), p.Payload()) {
			t.Error("reassembled, it is something else")
		}
		if len(all) > 0 && !bytes.Equal(all[0][packet.IPv4HdrLen:p.HdrLen()], p[packet.IPv4HdrLen:p.HdrLen()]) {
			t.Error("the options of the first fragment changed")
		}
		for i, f := range all[min(1, len(all)):] {
			for k, option := range f[packet.IPv4HdrLen:f.HdrLen()] {
				if was := p[packet.IPv4HdrLen+k]; option != was && option != 1 {
					t.Errorf("later fragment %d: option byte %d is %#02x, was %#02x", i, k, option, was)
				}
			}
		}
	})
}
