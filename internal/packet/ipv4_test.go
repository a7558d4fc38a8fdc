package packet_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/packet"
)

// header returns a packet of n bytes that begins with a header of hdrLen bytes
// and says so; the rest is random.
func header(hdrLen, totalLength, n int) packet.IPv4 {
	p := packet.IPv4(randomBytes(uint64(n), max(n, packet.IPv4HdrLen)))
	p.InitHeader()
	p[0] = 4<<4 | byte(hdrLen/4)
	p.SetTotalLength(totalLength)
	return p[:n]
}

func TestIPv4_Accessors(t *testing.T) {
	p := packet.IPv4{
		0x46, 0xb9, 0x00, 0x1a, // version 4, IHL 6; DSCP EF, ECT(1); total length 26
		0xbe, 0xef, 0x60, 0x03, // ID; DF and MF, offset 3 × 8
		0x40, 0x06, 0x12, 0x34, // TTL 64, TCP, checksum
		0x0a, 0x00, 0x00, 0x01, // 10.0.0.1
		0xc0, 0xa8, 0x01, 0x81, // 192.168.1.129
		0x94, 0x04, 0x00, 0x00, // router alert
		0xca, 0xfe, 0xff, // payload, padding
	}
	type fields struct {
		Version, HdrLen, TotalLength, FragmentOffset int
		TOS, TTL, Protocol                           uint8
		ID, Checksum                                 uint16
		DF, MF, IsFragment, Valid                    bool
		Source, Destination                          [4]byte
		Payload                                      []byte
	}
	got := fields{
		p.Version(), p.HdrLen(), p.TotalLength(), p.FragmentOffset(),
		p.TOS(), p.TTL(), p.Protocol(),
		p.ID(), p.Checksum(),
		p.DF(), p.MF(), p.IsFragment(), p.Valid(),
		p.Source(), p.Destination(),
		p.Payload(),
	}
	want := fields{
		4, 24, 26, 24,
		0xb9, 64, packet.ProtoTCP,
		0xbeef, 0x1234,
		true, true, true, true,
		[4]byte{10, 0, 0, 1}, [4]byte{192, 168, 1, 129},
		[]byte{0xca, 0xfe},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

// Each setter writes its field and no other bit, whatever was there before.
func TestIPv4_Setters(t *testing.T) {
	tests := []struct {
		name   string
		set    func(packet.IPv4)
		mask   [packet.IPv4HdrLen]byte // the bits that belong to the field
		values [packet.IPv4HdrLen]byte // what they are afterwards
	}{
		{"SetTOS", func(p packet.IPv4) { p.SetTOS(0xa5) }, [20]byte{1: 0xff}, [20]byte{1: 0xa5}},
		{"SetTotalLength", func(p packet.IPv4) { p.SetTotalLength(0x1234) }, [20]byte{2: 0xff, 3: 0xff}, [20]byte{2: 0x12, 3: 0x34}},
		{"SetTotalLength, longest", func(p packet.IPv4) { p.SetTotalLength(65535) }, [20]byte{2: 0xff, 3: 0xff}, [20]byte{2: 0xff, 3: 0xff}},
		{"SetTotalLength, shortest", func(p packet.IPv4) { p.SetTotalLength(20) }, [20]byte{2: 0xff, 3: 0xff}, [20]byte{2: 0, 3: 20}},
		{"SetID", func(p packet.IPv4) { p.SetID(0xbeef) }, [20]byte{4: 0xff, 5: 0xff}, [20]byte{4: 0xbe, 5: 0xef}},
		{"SetDF(true)", func(p packet.IPv4) { p.SetDF(true) }, [20]byte{6: 0x40}, [20]byte{6: 0x40}},
		{"SetDF(false)", func(p packet.IPv4) { p.SetDF(false) }, [20]byte{6: 0x40}, [20]byte{}},
		{"SetTTL", func(p packet.IPv4) { p.SetTTL(7) }, [20]byte{8: 0xff}, [20]byte{8: 7}},
		{"SetProtocol", func(p packet.IPv4) { p.SetProtocol(packet.ProtoIPIP) }, [20]byte{9: 0xff}, [20]byte{9: 4}},
		{
			"SetSource", func(p packet.IPv4) { p.SetSource([4]byte{192, 0, 2, 1}) },
			[20]byte{12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}, [20]byte{12: 192, 13: 0, 14: 2, 15: 1},
		},
		{
			"SetDestination", func(p packet.IPv4) { p.SetDestination([4]byte{198, 51, 100, 2}) },
			[20]byte{16: 0xff, 17: 0xff, 18: 0xff, 19: 0xff}, [20]byte{16: 198, 17: 51, 18: 100, 19: 2},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, before := range map[string][]byte{
				"zeros":  make([]byte, 24),
				"ones":   bytes.Repeat([]byte{0xff}, 24),
				"random": randomBytes(5, 24),
			} {
				want := bytes.Clone(before)
				for i, m := range tt.mask {
					want[i] = want[i]&^m | tt.values[i]
				}
				p := packet.IPv4(bytes.Clone(before))
				tt.set(p)
				if diff := cmp.Diff(want, []byte(p)); diff != "" {
					t.Errorf("on %s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
}

func TestIPv4_RoundTrip(t *testing.T) {
	p := packet.IPv4(make([]byte, packet.IPv4HdrLen))
	for v := range 0x100 {
		p.SetTOS(uint8(v))
		p.SetTTL(uint8(v) + 1)
		p.SetProtocol(uint8(v) + 2)
		if p.TOS() != uint8(v) || p.TTL() != uint8(v)+1 || p.Protocol() != uint8(v)+2 {
			t.Fatalf("TOS, TTL, protocol = %d, %d, %d; want %d and the next two", p.TOS(), p.TTL(), p.Protocol(), v)
		}
	}
	for v := range 0x10000 {
		p.SetTotalLength(v)
		p.SetID(^uint16(v))
		if p.TotalLength() != v || p.ID() != ^uint16(v) {
			t.Fatalf("total length %d, ID %#04x; want %d, %#04x", p.TotalLength(), p.ID(), v, ^uint16(v))
		}
	}
}

func TestIPv4_FragmentField(t *testing.T) {
	tests := []struct {
		name       string
		hi, lo     byte
		df, mf     bool
		offset     int
		isFragment bool
	}{
		{"whole", 0x00, 0x00, false, false, 0, false},
		{"whole, DF", 0x40, 0x00, true, false, 0, false},
		{"whole, reserved bit", 0x80, 0x00, false, false, 0, false},
		{"first fragment", 0x20, 0x00, false, true, 0, true},
		{"first fragment, DF", 0x60, 0x00, true, true, 0, true},
		{"second fragment", 0x20, 0xb9, false, true, 1480, true},
		{"last fragment", 0x00, 0x01, false, false, 8, true},
		{"last fragment, high bits of the offset only", 0x10, 0x00, false, false, 32768, true},
		{"the last offset of all", 0x1f, 0xff, false, false, 65528, true},
		{"all ones", 0xff, 0xff, true, true, 65528, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := header(20, 20, 20)
			p[6], p[7] = tt.hi, tt.lo
			if p.DF() != tt.df || p.MF() != tt.mf || p.FragmentOffset() != tt.offset || p.IsFragment() != tt.isFragment {
				t.Errorf("DF %v, MF %v, offset %d, fragment %v; want %v, %v, %d, %v", p.DF(), p.MF(), p.FragmentOffset(),
					p.IsFragment(), tt.df, tt.mf, tt.offset, tt.isFragment)
			}
			if want := tt.hi >= 0x80; p.Reserved() != want {
				t.Errorf("reserved flag %v, want %v", p.Reserved(), want)
			}
		})
	}
}

func TestIPv4_InitHeader(t *testing.T) {
	p := packet.IPv4(bytes.Repeat([]byte{0xff}, 24))
	p.InitHeader()
	want := append(append([]byte{0x45}, make([]byte, 19)...), 0xff, 0xff, 0xff, 0xff)
	if diff := cmp.Diff(want, []byte(p)); diff != "" {
		t.Errorf("InitHeader (-want +got):\n%s", diff)
	}
}

// RFC 791 §3.1: the checksum covers the header with its options, not the data.
func TestIPv4_UpdateChecksum(t *testing.T) {
	for hdrLen := packet.IPv4HdrLen; hdrLen <= packet.IPv4MaxHdrLen; hdrLen += 4 {
		p := packet.IPv4(randomBytes(uint64(hdrLen), hdrLen+7))
		p[0] = 4<<4 | byte(hdrLen/4)
		payload := bytes.Clone(p[hdrLen:])

		want := bytes.Clone(p[:hdrLen])
		want[10], want[11] = 0, 0
		if p.UpdateChecksum(); p.Checksum() != ^slowSum(want, 0) {
			t.Errorf("header of %d bytes: checksum %#04x, want %#04x", hdrLen, p.Checksum(), ^slowSum(want, 0))
		}
		if got := packet.Sum(p[:hdrLen], 0); got != 0xffff {
			t.Errorf("header of %d bytes: sums to %#04x with its checksum, want 0xffff", hdrLen, got)
		}
		if !bytes.Equal(p[hdrLen:], payload) {
			t.Errorf("header of %d bytes: the payload changed", hdrLen)
		}
	}
}

// A right checksum stays right, bit by bit, and a wrong one stays as wrong as
// it was: the receiver must still see the damage.
func TestIPv4_RewriteTOS(t *testing.T) {
	for _, damage := range []uint16{0, 1, 0x8000, 0x1234} {
		for from := range 0x100 {
			for to := range 0x100 {
				p := header(20, 100, 20)
				p.SetTOS(uint8(from))
				p.SetTTL(uint8(from ^ to))
				p.UpdateChecksum()
				want := packet.IPv4(bytes.Clone(p))
				want.SetTOS(uint8(to))
				want.UpdateChecksum()

				p[10] ^= byte(damage >> 8)
				p[11] ^= byte(damage)
				before := slowSum(p, 0)
				p.RewriteTOS(uint8(to))

				if p.TOS() != uint8(to) {
					t.Fatalf("TOS %#02x, want %#02x", p.TOS(), to)
				}
				if damage == 0 && !bytes.Equal(p, want) {
					t.Fatalf("TOS %#02x to %#02x: % x, want % x", from, to, p, want)
				}
				if after := slowSum(p, 0); after != before {
					t.Fatalf("TOS %#02x to %#02x: header sums to %#04x, before %#04x", from, to, after, before)
				}
			}
		}
	}
}

func TestIPv4_Valid(t *testing.T) {
	withVersion := func(v byte) packet.IPv4 {
		p := header(20, 40, 40)
		p[0] = v<<4 | 5
		return p
	}
	tests := []struct {
		name string
		p    packet.IPv4
		want bool
	}{
		{"nil", nil, false},
		{"empty", packet.IPv4{}, false},
		{"one byte", header(20, 20, 1), false},
		{"one byte short of a header", header(20, 20, 19), false},
		{"header only", header(20, 20, 20), true},
		{"header and payload", header(20, 1480, 1480), true},
		{"longest packet", header(20, 65535, 65535), true},
		{"version 0", withVersion(0), false},
		{"version 5", withVersion(5), false},
		{"version 6", withVersion(6), false},
		{"version 15", withVersion(15), false},
		{"IHL 0", header(0, 40, 40), false},
		{"IHL 4", header(16, 40, 40), false},
		{"IHL 6, packet of 20", header(24, 20, 20), false},
		{"IHL 6, packet of 23", header(24, 24, 23), false},
		{"IHL 6, packet of 24", header(24, 24, 24), true},
		{"IHL 15, packet of 59", header(60, 60, 59), false},
		{"IHL 15, packet of 60", header(60, 60, 60), true},
		{"total length 0", header(20, 0, 40), false},
		{"total length 19", header(20, 19, 40), false},
		{"total length within the options", header(24, 23, 40), false},
		{"total length covers just the options", header(24, 24, 40), true},
		{"total length one too long", header(20, 41, 40), false},
		{"total length 65535 of 40", header(20, 65535, 40), false},
		{"padded", header(20, 39, 40), true},
		{"wrong checksum is not its business", func() packet.IPv4 {
			p := header(20, 40, 40)
			p.UpdateChecksum()
			p[10] ^= 0xff
			return p
		}(), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.p.Valid(); got != tt.want {
				t.Errorf("Valid = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestIPv4_Payload(t *testing.T) {
	p := header(24, 30, 40)
	got := p.Payload()
	if !bytes.Equal(got, p[24:30]) {
		t.Errorf("Payload = % x, want % x", got, p[24:30])
	}
	got[0] ^= 0xff
	if got[0] != p[24] {
		t.Error("Payload is a copy, want the packet's own memory")
	}
	if got := header(60, 60, 61).Payload(); len(got) != 0 {
		t.Errorf("Payload of a bare header has %d bytes", len(got))
	}
}

func FuzzIPv4Valid(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(header(20, 20, 20)))
	f.Add([]byte(header(60, 60, 60)))
	f.Add([]byte(header(24, 30, 40)))
	f.Add([]byte(header(16, 40, 40)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := packet.IPv4(b)
		if !p.Valid() {
			return
		}
		if p.Version() != 4 {
			t.Errorf("version %d", p.Version())
		}
		if h, n := p.HdrLen(), p.TotalLength(); h < packet.IPv4HdrLen || h > packet.IPv4MaxHdrLen || n < h || n > len(p) {
			t.Errorf("%d bytes, header of %d, total length %d", len(p), h, n)
		}
		if want := p.TotalLength() - p.HdrLen(); len(p.Payload()) != want {
			t.Errorf("payload of %d bytes, want %d", len(p.Payload()), want)
		}
		if p.IsFragment() != (p.MF() || p.FragmentOffset() != 0) {
			t.Error("IsFragment contradicts MF and FragmentOffset")
		}
		if got, want := packet.PseudoHeaderSum(p), slowPseudoHeaderSum(p); got != want {
			t.Errorf("PseudoHeaderSum = %#04x, want %#04x", got, want)
		}
		tos, df := p.TOS(), p.DF()
		p.RewriteTOS(^tos)
		p.RewriteTOS(tos)
		p.SetTTL(p.TTL())
		p.SetDF(!df)
		p.SetDF(df)
		p.SetID(p.ID())
		p.SetProtocol(p.Protocol())
		p.SetSource(p.Source())
		p.SetDestination(p.Destination())
		p.SetTotalLength(p.TotalLength())
		p.UpdateChecksum()
		if got := packet.Sum(p[:p.HdrLen()], 0); got != 0xffff {
			t.Errorf("header sums to %#04x after UpdateChecksum", got)
		}
		if !p.Valid() {
			t.Error("no longer valid after fields were set to what they were")
		}
	})
}
