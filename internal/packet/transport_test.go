package packet_test

import (
	"testing"

	"goipip/internal/packet"
)

// slowPseudoHeaderSum writes the pseudo-header of RFC 9293 §3.1 out and sums it.
func slowPseudoHeaderSum(p packet.IPv4) uint16 {
	src, dst, n := p.Source(), p.Destination(), p.TotalLength()-p.HdrLen()
	return slowSum([]byte{
		src[0], src[1], src[2], src[3],
		dst[0], dst[1], dst[2], dst[3],
		0, p.Protocol(), byte(n >> 8), byte(n),
	}, 0)
}

func TestPseudoHeaderSum(t *testing.T) {
	tests := []struct {
		name           string
		src, dst       [4]byte
		protocol       uint8
		hdrLen, length int
		want           uint16
	}{
		{"UDP", [4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 2}, packet.ProtoUDP, 20, 12, 0xec54},
		{"UDP, options are not counted", [4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 2}, packet.ProtoUDP, 60, 12, 0xec54},
		{"TCP", [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2}, packet.ProtoTCP, 20, 20, 0x141d},
		{"carries more than once", [4]byte{255, 255, 255, 255}, [4]byte{255, 255, 255, 255}, packet.ProtoTCP, 20, 65515, 0xfff1},
		{"nothing but the protocol", [4]byte{}, [4]byte{}, packet.ProtoTCP, 20, 0, 6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := header(tt.hdrLen, tt.hdrLen+tt.length, tt.hdrLen+tt.length+3) // padded: only the total length counts
			p.SetProtocol(tt.protocol)
			p.SetSource(tt.src)
			p.SetDestination(tt.dst)
			if got := packet.PseudoHeaderSum(p); got != tt.want {
				t.Errorf("PseudoHeaderSum = %#04x, want %#04x", got, tt.want)
			}
			if slow := slowPseudoHeaderSum(p); slow != tt.want {
				t.Errorf("the reference gives %#04x, want %#04x", slow, tt.want)
			}
		})
	}
}

// A golden datagram, computed elsewhere: a receiver's sum over pseudo-header
// and datagram is 0xffff, and finishing a partial checksum gives the same bytes.
func TestPseudoHeaderSum_Golden(t *testing.T) {
	p := packet.IPv4(append(make([]byte, packet.IPv4HdrLen),
		0x14, 0xe9, // source port 5353
		0x00, 0x35, // destination port 53
		0x00, 0x0c, // length 12
		0x2d, 0xa1, // checksum
		'g', 'o', 'i', 'p',
	))
	p.InitHeader()
	p.SetTotalLength(len(p))
	p.SetProtocol(packet.ProtoUDP)
	p.SetSource([4]byte{192, 0, 2, 1})
	p.SetDestination([4]byte{198, 51, 100, 2})

	pseudo := packet.PseudoHeaderSum(p)
	if got := packet.Sum(p.Payload(), pseudo); got != 0xffff {
		t.Errorf("the datagram sums to %#04x, want 0xffff", got)
	}
	p[packet.IPv4HdrLen+packet.UDPCsumOffset] = byte(pseudo >> 8)
	p[packet.IPv4HdrLen+packet.UDPCsumOffset+1] = byte(pseudo)
	if !packet.FinishChecksum(p, partialAt(packet.IPv4HdrLen, packet.UDPCsumOffset)) {
		t.Fatal("FinishChecksum = false")
	}
	if got := packet.UDP(p.Payload()).Checksum(); got != 0x2da1 {
		t.Errorf("finished checksum %#04x, want 0x2da1", got)
	}
}

func TestTCP_Valid(t *testing.T) {
	tests := []struct {
		name       string
		dataOffset byte // in words of 4 bytes, RFC 9293 §3.1
		n          int
		want       bool
	}{
		{"empty", 5, 0, false},
		{"offset field cut off", 5, 12, false},
		{"one byte short", 5, 19, false},
		{"header only", 5, 20, true},
		{"with data", 5, 1460, true},
		{"offset 0", 0, 1460, false},
		{"offset 4", 4, 1460, false},
		{"timestamps, cut", 8, 31, false},
		{"timestamps", 8, 32, true},
		{"longest header, cut", 15, 59, false},
		{"longest header", 15, 60, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := make([]byte, max(tt.n, packet.TCPHdrLen))
			b[12] = tt.dataOffset<<4 | 0x0f // the low bits are reserved, a receiver ignores them
			b[packet.TCPCsumOffset], b[packet.TCPCsumOffset+1] = 0xbe, 0xef
			tcp := packet.TCP(b[:tt.n])
			if got := tcp.Valid(); got != tt.want {
				t.Fatalf("Valid = %v, want %v", got, tt.want)
			}
			if !tt.want {
				return
			}
			if got, want := tcp.HdrLen(), int(tt.dataOffset)*4; got != want {
				t.Errorf("HdrLen = %d, want %d", got, want)
			}
			if got := tcp.Checksum(); got != 0xbeef {
				t.Errorf("Checksum = %#04x, want 0xbeef", got)
			}
		})
	}
}

// The MSS is found wherever options stand, and patches the checksum to what it is when it is
// computed anew.
func TestTCP_MSS(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options []byte
		at      int
	}{
		{"none", nil, 0},
		{"first", []byte{2, 4, 0x05, 0xb4}, 22},
		{"at an odd place", []byte{1, 2, 4, 0x05, 0xb4, 0, 0, 0}, 23},
		{"last", []byte{4, 2, 1, 1, 3, 3, 7, 1, 2, 4, 0x05, 0xb4}, 30},
		{"after the end", []byte{0, 2, 4, 0x05, 0xb4, 0, 0, 0}, 0},
		{"after an option of no length", []byte{8, 0, 2, 4, 0x05, 0xb4, 0, 0}, 0},
		{"cut", []byte{1, 2, 4, 0x05}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, mss := range []uint16{0, 1, 0x05b3, 0x0600, 0xfffe, 0xffff} {
				tcp := packet.TCP(append(append(randomBytes(9, packet.TCPHdrLen), tt.options...), 1, 2, 3))
				tcp[12] = byte(packet.TCPHdrLen+len(tt.options)) << 2
				tcp.SetChecksum(0)
				tcp.SetChecksum(^slowSum(tcp, 0))
				before, at := tcp.MSS()
				if at != tt.at || at != 0 && before != 0x05b4 {
					t.Fatalf("MSS = %d at %d, want 1460 at %d", before, at, tt.at)
				}
				if at == 0 {
					return
				}
				tcp.SetMSS(at, mss)
				tcp.PatchChecksum(at, before, mss)
				if got := slowSum(tcp, 0); got != 0xffff {
					t.Errorf("with %d it sums to %#04x, want 0xffff", mss, got)
				}
				if got, _ := tcp.MSS(); got != mss {
					t.Errorf("MSS = %d after SetMSS(%d)", got, mss)
				}
			}
		})
	}
}

func TestIPv4_HasSYN(t *testing.T) {
	for hdrLen := 20; hdrLen <= 60; hdrLen += 4 {
		for n := range packet.TCPHdrLen {
			p := header(hdrLen, hdrLen+n, hdrLen+n)
			clear(p[packet.IPv4HdrLen:])
			p.SetProtocol(packet.ProtoTCP)
			if p.HasSYN() {
				t.Errorf("without SYN: % x", p)
			}
			if n <= 13 {
				continue
			}
			p[hdrLen+13] = packet.TCPSyn
			if !p.HasSYN() {
				t.Errorf("with SYN: % x", p)
			}
			if p.SetProtocol(packet.ProtoUDP); p.HasSYN() {
				t.Errorf("of UDP: % x", p)
			}
		}
	}
}

func TestUDP_Valid(t *testing.T) {
	for n := range 12 {
		udp := packet.UDP(make([]byte, n))
		if got, want := udp.Valid(), n >= packet.UDPHdrLen; got != want {
			t.Errorf("%d bytes: Valid = %v, want %v", n, got, want)
		}
	}
	udp := packet.UDP{0, 1, 0, 2, 0, 8, 0xbe, 0xef}
	if got := udp.Checksum(); got != 0xbeef {
		t.Errorf("Checksum = %#04x, want 0xbeef", got)
	}
}

func FuzzTransportValid(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 12), 0x50, 0, 0, 0, 0, 0, 0, 0))
	f.Add(append(make([]byte, 12), 0xf0, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tcp := packet.TCP(b); tcp.Valid() {
			if n := tcp.HdrLen(); n < packet.TCPHdrLen || n > len(b) {
				t.Errorf("TCP header of %d bytes in %d", n, len(b))
			}
			_ = tcp.Checksum()
		}
		if udp := packet.UDP(b); udp.Valid() {
			_ = udp.Checksum()
		}
	})
}

// Every bit of addresses and ports takes part in the numbers to compare, and no
// other field.
func TestNumbersToCompare(t *testing.T) {
	p := packet.IPv4(make([]byte, packet.IPv4HdrLen+packet.TCPHdrLen))
	p.InitHeader()
	p.SetTotalLength(len(p))
	type numbers struct {
		addresses uint64
		tcp, udp  uint32
	}
	of := func() numbers {
		payload := p.Payload()
		return numbers{p.Addresses(), packet.TCP(payload).Ports(), packet.UDP(payload).Ports()}
	}
	zero := of()
	if zero != (numbers{}) {
		t.Errorf("of zeros: %+v", zero)
	}
	for at := packet.IPv4HdrLen - 10; at < len(p); at++ {
		for bit := range 8 {
			p[at] ^= 1 << bit
			got := of()
			inAddresses, inPorts := at >= 12 && at < 20, at >= 20 && at < 24
			if (got.addresses != 0) != inAddresses || (got.tcp != 0) != inPorts || (got.udp != 0) != inPorts {
				t.Errorf("bit %d of byte %d: %+v", bit, at, got)
			}
			p[at] ^= 1 << bit
		}
	}
}
