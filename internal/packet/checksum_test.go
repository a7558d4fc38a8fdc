package packet_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"goipip/internal/packet"
)

// slowSum is RFC 1071 §4.1 read aloud: two bytes at a time, folded at the end.
func slowSum(b []byte, initial uint16) uint16 {
	sum := uint64(initial)
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// randomBytes has a fixed seed, so that a failure repeats itself.
func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestSum_Known(t *testing.T) {
	tests := []struct {
		name    string
		data    []byte
		initial uint16
		want    uint16
	}{
		{"RFC 1071 §3", []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0, 0xddf2},
		{"RFC 1071 §3, swapped bytes give the swapped sum", []byte{0x01, 0x00, 0x03, 0xf2, 0xf5, 0xf4, 0xf7, 0xf6}, 0, 0xf2dd},
		{"RFC 1071 §3, in two halves", []byte{0xf4, 0xf5, 0xf6, 0xf7}, 0xf204, 0xddf2},
		{"nothing", nil, 0, 0},
		{"nothing keeps the initial value", nil, 0x1234, 0x1234},
		{"nothing does not make minus zero of zero", []byte{}, 0xffff, 0xffff},
		{"odd byte is the high one of its word", []byte{0xab}, 0, 0xab00},
		{"carry out of the initial value", []byte{0x00, 0x01}, 0xffff, 0x0001},
		{"sum of minus zeros is minus zero", []byte{0xff, 0xff, 0xff, 0xff}, 0xffff, 0xffff},
		{"a header with its checksum in place", []byte{
			0x45, 0x00, 0x00, 0x38, 0x00, 0x00, 0x40, 0x00, 0x40, 0x04,
			0x67, 0x51, 0x0a, 0x5a, 0x06, 0xee, 0xc0, 0xa8, 0x01, 0x81,
		}, 0, 0xffff},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := packet.Sum(tt.data, tt.initial); got != tt.want {
				t.Errorf("Sum(% x, %#04x) = %#04x, want %#04x", tt.data, tt.initial, got, tt.want)
			}
		})
	}
}

// The first 200 lengths at every alignment meet each unrolled loop and each
// tail that an implementation may have; the three kinds of data meet no carry,
// every carry, and the rest.
func TestSum_LengthsAndAlignments(t *testing.T) {
	const longest, alignments = 200, 16
	kinds := map[string][]byte{
		"zeros":  make([]byte, longest+alignments),
		"ones":   bytes.Repeat([]byte{0xff}, longest+alignments),
		"random": randomBytes(1, longest+alignments),
	}
	for name, data := range kinds {
		t.Run(name, func(t *testing.T) {
			for n := range longest + 1 {
				for at := range alignments {
					for _, initial := range []uint16{0, 1, 0x00ff, 0xff00, 0x8000, 0xfffe, 0xffff} {
						b := data[at : at+n]
						got, want := packet.Sum(b, initial), slowSum(b, initial)
						if got != want {
							t.Fatalf("%d bytes at alignment %d, initial %#04x: Sum = %#04x, want %#04x", n, at, initial, got, want)
						}
					}
				}
			}
		})
	}
}

func TestSum_EveryInitialValue(t *testing.T) {
	for _, data := range [][]byte{nil, {0xff, 0xff}, {0x80}, randomBytes(2, 1481)} {
		for initial := range 0x10000 {
			got, want := packet.Sum(data, uint16(initial)), slowSum(data, uint16(initial))
			if got != want {
				t.Fatalf("%d bytes, initial %#04x: Sum = %#04x, want %#04x", len(data), initial, got, want)
			}
		}
	}
}

// Folding 64 bits to 16 takes several steps, each of which may carry; random
// data meet the last carry once in billions of sums. These words meet them all,
// whichever byte order the machine adds in.
func TestSum_EveryCarryOfTheFold(t *testing.T) {
	words := []uint16{0x0000, 0x0001, 0x0100, 0x00ff, 0xff00, 0xfeff, 0xfffe, 0xffff}
	b := make([]byte, 8)
	for i := range len(words) * len(words) * len(words) * len(words) {
		for at, rest := 0, i; at < len(b); at, rest = at+2, rest/len(words) {
			w := words[rest%len(words)]
			b[at], b[at+1] = byte(w>>8), byte(w)
		}
		for _, data := range [][]byte{b, append(bytes.Repeat([]byte{0xff}, 8), b...), append(bytes.Clone(b), b...)} {
			if got, want := packet.Sum(data, 0), slowSum(data, 0); got != want {
				t.Fatalf("Sum(% x) = %#04x, want %#04x", data, got, want)
			}
		}
	}
}

// A superpacket is up to 64 KiB long; all ones carry out of every addition.
func TestSum_Superpacket(t *testing.T) {
	for name, data := range map[string][]byte{
		"zeros":  make([]byte, 64<<10),
		"ones":   bytes.Repeat([]byte{0xff}, 64<<10),
		"random": randomBytes(3, 64<<10),
	} {
		for _, n := range []int{65515, 65534, 65535, 65536} {
			for _, initial := range []uint16{0, 0xffff} {
				got, want := packet.Sum(data[:n], initial), slowSum(data[:n], initial)
				if got != want {
					t.Errorf("%s, %d bytes, initial %#04x: Sum = %#04x, want %#04x", name, n, initial, got, want)
				}
			}
		}
	}
}

func TestPatchChecksum_Known(t *testing.T) {
	tests := []struct {
		name               string
		checksum, old, new uint16
		want               uint16
	}{
		// RFC 1624 §4: here RFC 1141's equation gives 0xffff.
		{"RFC 1624 §4", 0xdd2f, 0x5555, 0x3285, 0x0000},
		{"back again", 0x0000, 0x3285, 0x5555, 0xdd2f},
		{"nothing changed", 0xdd2f, 0x5555, 0x5555, 0xdd2f},
		// The reported erratum 4782 of RFC 1624 says that this gives 0xffff.
		{"nothing changed, checksum zero", 0x0000, 0x5555, 0x5555, 0x0000},
		{"TTL 64 to 63", 0xb861, 0x4011, 0x3f11, 0xb961},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := packet.PatchChecksum(tt.checksum, tt.old, tt.new); got != tt.want {
				t.Errorf("PatchChecksum(%#04x, %#04x, %#04x) = %#04x, want %#04x", tt.checksum, tt.old, tt.new, got, tt.want)
			}
		})
	}
}

// Patching equals computing anew, bit by bit, as long as the other words are
// not all zero; an IPv4 header, with its version, never is.
func TestPatchChecksum_EqualsRecomputation(t *testing.T) {
	others := []uint16{0x0001, 0x4500, 0x7fff, 0xfffe, 0xffff}
	words := []uint16{0x0000, 0x0001, 0x00ff, 0x3285, 0x5555, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff}
	sum := func(a, b uint16) uint16 {
		return slowSum([]byte{byte(a >> 8), byte(a), byte(b >> 8), byte(b)}, 0)
	}
	for _, other := range others {
		for _, old := range words {
			for next := range 0x10000 {
				got := packet.PatchChecksum(^sum(other, old), old, uint16(next))
				if want := ^sum(other, uint16(next)); got != want {
					t.Fatalf("beside %#04x, from %#04x to %#04x: %#04x, want %#04x", other, old, next, got, want)
				}
			}
		}
	}
}

// partialAt is the header of a packet whose checksum stands offset bytes into
// what it covers, which is everything from start on.
func partialAt(start, offset int) packet.VNetHdr {
	return packet.VNetHdr{Flags: packet.VNetNeedsCsum, CsumStart: uint16(start), CsumOffset: uint16(offset)}
}

func TestFinishChecksum(t *testing.T) {
	for _, n := range []int{2, 3, 8, 12, 13, 20, 21, 1460, 1461, 65515} {
		for _, start := range []int{0, 1, 20, 60} {
			for _, offset := range []int{0, min(6, n-2), min(16, n-2), n - 2} {
				b := randomBytes(uint64(n), start+n)
				want := bytes.Clone(b)
				sum := ^slowSum(want[start:], 0)
				if sum == 0 {
					sum = 0xffff
				}
				want[start+offset], want[start+offset+1] = byte(sum>>8), byte(sum)

				if !packet.FinishChecksum(b, partialAt(start, offset)) {
					t.Fatalf("%d bytes, FinishChecksum(%d, %d) = false", len(b), start, offset)
				}
				if !bytes.Equal(b, want) {
					t.Fatalf("%d bytes, FinishChecksum(%d, %d): field % x, want % x", len(b), start, offset,
						b[start+offset:start+offset+2], want[start+offset:start+offset+2])
				}
			}
		}
	}
}

// RFC 768: a checksum that is computed as zero is sent as all ones.
func TestFinishChecksum_ZeroBecomesAllOnes(t *testing.T) {
	b := []byte{
		0xaa,       // before csumStart, not covered
		0xff, 0xf0, // covered
		0x00, 0x0f, // the field: the partial sum that makes all of it 0xffff
		0x00, 0x00,
	}
	want := []byte{0xaa, 0xff, 0xf0, 0xff, 0xff, 0x00, 0x00}
	if !packet.FinishChecksum(b, partialAt(1, 2)) {
		t.Fatal("FinishChecksum = false")
	}
	if !bytes.Equal(b, want) {
		t.Errorf("FinishChecksum made % x, want % x", b, want)
	}
}

func TestFinishChecksum_OutOfRange(t *testing.T) {
	tests := []struct {
		name          string
		n             int
		start, offset int
		want          bool
	}{
		{"the last word", 20, 10, 8, true},
		{"half of it beyond the end", 20, 10, 9, false},
		{"just beyond the end", 20, 10, 10, false},
		{"start at the end", 20, 20, 0, false},
		{"start beyond the end", 20, 21, 0, false},
		{"nothing there", 0, 0, 0, false},
		{"one byte", 1, 0, 0, false},
		{"largest values of a virtio-net header", 20, math.MaxUint16, math.MaxUint16, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := randomBytes(4, tt.n)
			before := bytes.Clone(b)
			if got := packet.FinishChecksum(b, partialAt(tt.start, tt.offset)); got != tt.want {
				t.Errorf("%d bytes, FinishChecksum(%d, %d) = %v, want %v", tt.n, tt.start, tt.offset, got, tt.want)
			}
			if !tt.want && !bytes.Equal(b, before) {
				t.Errorf("it reported false and wrote: % x, before % x", b, before)
			}
		})
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, uint16(0))
	f.Add([]byte{0xff}, uint16(0xffff))
	f.Add(bytes.Repeat([]byte{0xff}, 129), uint16(1))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, initial uint16) {
		want := slowSum(b, initial)
		if got := packet.Sum(b, initial); got != want {
			t.Errorf("Sum(% x, %#04x) = %#04x, want %#04x", b, initial, got, want)
		}
		// RFC 1071 §2(B): the sum of two even parts is the sum of the whole.
		half := len(b) / 2 &^ 1
		if got := packet.Sum(b[half:], packet.Sum(b[:half], initial)); got != want {
			t.Errorf("in two parts: %#04x, want %#04x", got, want)
		}
	})
}

func FuzzFinishChecksum(f *testing.F) {
	f.Add(make([]byte, 40), uint16(20), uint16(packet.TCPCsumOffset))
	f.Add(make([]byte, 28), uint16(20), uint16(packet.UDPCsumOffset))
	f.Add([]byte{0xff, 0xff}, uint16(0), uint16(0))
	f.Add([]byte{1, 2, 3}, uint16(2), uint16(0))
	f.Add([]byte{1, 2, 3}, uint16(math.MaxUint16), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, csumStart, csumOffset uint16) {
		start, offset := int(csumStart), int(csumOffset)
		before := bytes.Clone(b)
		within := start+offset+2 <= len(b)

		if got := packet.FinishChecksum(b, partialAt(start, offset)); got != within {
			t.Fatalf("%d bytes, FinishChecksum(%d, %d) = %v, want %v", len(b), start, offset, got, within)
		}
		if !within {
			if !bytes.Equal(b, before) {
				t.Fatal("it reported false and wrote")
			}
			return
		}
		at := start + offset
		if !bytes.Equal(b[:at], before[:at]) || !bytes.Equal(b[at+2:], before[at+2:]) {
			t.Error("it wrote beside the field")
		}
		want := ^slowSum(before[start:], 0)
		if want == 0 {
			want = 0xffff
		}
		if got := uint16(b[at])<<8 | uint16(b[at+1]); got != want {
			t.Errorf("field %#04x, want %#04x", got, want)
		}
	})
}
