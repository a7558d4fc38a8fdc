package encap_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
)

const tunMTU = 1480

// checksumState is the state of a transport header's checksum field.
type checksumState int

const (
	partial  checksumState = iota // the pseudo-header sum; the rest is left to hardware
	complete                      // right
	none                          // zero: UDP without a checksum
)

// segment returns a TCP packet with hdrLen bytes of TCP header, options
// included, and n bytes of data.
func segment(s ipv4, hdrLen, n int, state checksumState) packet.IPv4 {
	s.proto = packet.ProtoTCP
	s.payload = append([]byte{
		0x9c, 0x40, 0x00, 0x50, // ports 40000 and 80
		0, 0, 0, 1, 0, 0, 0, 2, // sequence and acknowledgment number
		byte(hdrLen/4) << 4, 0x10, 0xff, 0xff, // data offset; ACK; window
		0, 0, 0, 0, // checksum, urgent pointer
	}, bytes.Repeat([]byte{1}, hdrLen-packet.TCPHdrLen)...) // no-operation options
	for i := range n {
		s.payload = append(s.payload, byte(i*7))
	}
	p := s.bytes()
	putChecksum(p, packet.TCPCsumOffset, state)
	return p
}

// datagram returns a UDP packet with n bytes of data.
func datagram(s ipv4, n int, state checksumState) packet.IPv4 {
	s.proto = packet.ProtoUDP
	s.payload = make([]byte, packet.UDPHdrLen+n)
	putWord(s.payload, 0, 5353)
	putWord(s.payload, 2, 53)
	putWord(s.payload, 4, uint16(len(s.payload)))
	p := s.bytes()
	putChecksum(p, packet.UDPCsumOffset, state)
	return p
}

func putChecksum(p packet.IPv4, offset int, state checksumState) {
	at := p.HdrLen() + offset
	switch state {
	case none:
		putWord(p, at, 0)
	case partial, complete:
		putWord(p, at, packet.PseudoHeaderSum(p))
	}
	if state == complete && !packet.FinishChecksum(p, packet.VNetHdr{CsumStart: uint16(p.HdrLen()), CsumOffset: uint16(offset)}) {
		panic("a packet without a checksum field")
	}
}

func partialTCP(hdrLen, csumStart uint16) packet.VNetHdr {
	return packet.VNetHdr{
		Flags: packet.VNetNeedsCsum, HdrLen: hdrLen,
		CsumStart: csumStart, CsumOffset: packet.TCPCsumOffset,
	}
}

func partialUDP(hdrLen, csumStart uint16) packet.VNetHdr {
	return packet.VNetHdr{
		Flags: packet.VNetNeedsCsum, HdrLen: hdrLen,
		CsumStart: csumStart, CsumOffset: packet.UDPCsumOffset,
	}
}

func superpacket(hdrLen, csumStart, gsoSize uint16) packet.VNetHdr {
	h := partialTCP(hdrLen, csumStart)
	h.GSOType, h.GSOSize = packet.VNetGSOTCPv4, gsoSize
	return h
}

func TestUnfinished(t *testing.T) {
	routerAlert := ipv4{options: []byte{0x94, 4, 0, 0}}
	sixtyBytes := ipv4{options: bytes.Repeat([]byte{1}, 40)}
	finished := packet.VNetHdr{}
	tests := []struct {
		name  string
		inner packet.IPv4
		want  packet.VNetHdr
	}{
		{"partial TCP", segment(ipv4{}, 20, 100, partial), partialTCP(40, 20)},
		{"partial TCP, no data", segment(ipv4{}, 20, 0, partial), partialTCP(40, 20)},
		{"partial TCP, TCP options", segment(ipv4{}, 32, 100, partial), partialTCP(52, 20)},
		{"partial TCP, IP options", segment(routerAlert, 20, 100, partial), partialTCP(44, 24)},
		{"partial TCP, longest headers", segment(sixtyBytes, 60, 100, partial), partialTCP(120, 60)},
		{"complete TCP", segment(ipv4{}, 20, 100, complete), finished},
		{"complete TCP, no data", segment(ipv4{}, 20, 0, complete), finished},
		{"TCP, field zero", segment(ipv4{}, 20, 100, none), finished},

		{"partial UDP", datagram(ipv4{}, 100, partial), partialUDP(28, 20)},
		{"partial UDP, no data", datagram(ipv4{}, 0, partial), partialUDP(28, 20)},
		{"partial UDP, IP options", datagram(sixtyBytes, 5, partial), partialUDP(68, 60)},
		{"complete UDP", datagram(ipv4{}, 100, complete), finished},
		{"UDP without a checksum", datagram(ipv4{}, 100, none), finished},

		{"as long as the mtu", segment(ipv4{}, 20, tunMTU-40, partial), partialTCP(40, 20)},
		{"one byte longer", segment(ipv4{}, 20, tunMTU-39, partial), superpacket(40, 20, 1440)},
		{"superpacket", segment(ipv4{}, 20, 30000, partial), superpacket(40, 20, 1440)},
		{"superpacket, timestamps", segment(ipv4{}, 32, 30000, partial), superpacket(52, 20, 1428)},
		{"superpacket, IP options", segment(routerAlert, 20, 30000, partial), superpacket(44, 24, 1436)},
		{"superpacket, longest headers", segment(sixtyBytes, 60, 30000, partial), superpacket(120, 60, 1360)},
		{"longest superpacket", segment(ipv4{}, 20, packet.IPv4MaxLen-40, partial), superpacket(40, 20, 1440)},
		{"complete, longer than the mtu", segment(ipv4{}, 20, 30000, complete), finished},
		// The size of its datagrams is not known: it stays one.
		{"partial UDP, longer than the mtu", datagram(ipv4{}, 30000, partial), partialUDP(28, 20)},

		// Only the first fragment has the checksum, which covers all of them.
		{"first fragment of TCP", segment(ipv4{mf: true}, 20, 100, partial), finished},
		{"later fragment of TCP", segment(ipv4{offset: 1480}, 20, 100, partial), finished},
		{"first fragment of UDP", datagram(ipv4{mf: true}, 96, partial), finished},
		{"later fragment of UDP", datagram(ipv4{mf: true, offset: 8}, 96, partial), finished},

		{"ICMP", ipv4{}.bytes(), finished},
		{"ICMP, longer than the mtu", ipv4{payload: make([]byte, 3000)}.bytes(), finished},
		{"IPIP", wrap(segment(ipv4{}, 20, 100, partial)), finished},
		{"bare header, TCP", ipv4{proto: packet.ProtoTCP, payload: []byte{}}.bytes(), finished},
		{"bare header, UDP", ipv4{proto: packet.ProtoUDP, payload: []byte{}}.bytes(), finished},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := bytes.Clone(tt.inner)
			if diff := cmp.Diff(tt.want, encap.Unfinished(tt.inner, tunMTU)); diff != "" {
				t.Errorf("Unfinished (-want +got):\n%s", diff)
			}
			if !bytes.Equal(tt.inner, before) {
				t.Error("the packet changed")
			}
		})
	}
}

// In a protocol other than TCP and UDP, bytes that equal the pseudo-header sum mean
// nothing.
func TestUnfinished_OtherProtocols(t *testing.T) {
	for proto := range 0x100 {
		if proto == packet.ProtoTCP || proto == packet.ProtoUDP {
			continue
		}
		for _, offset := range []int{packet.UDPCsumOffset, packet.TCPCsumOffset} {
			p := segment(ipv4{}, 20, 100, complete)
			p.SetProtocol(uint8(proto))
			putWord(p, p.HdrLen()+offset, packet.PseudoHeaderSum(p))
			if got := encap.Unfinished(p, tunMTU); got != (packet.VNetHdr{}) {
				t.Errorf("protocol %d: %+v", proto, got)
			}
		}
	}
}

// A truncated transport header, or one with an invalid length, is left alone: its
// checksum may lie beyond the packet.
func TestUnfinished_LyingHeaderLength(t *testing.T) {
	for words := range 16 {
		for _, n := range []int{0, 4, 39, 3000} {
			p := segment(ipv4{}, 20, n, partial)
			p[p.HdrLen()+12] = byte(words) << 4
			valid := words >= 5 && 4*words <= 20+n
			got := encap.Unfinished(p, tunMTU)
			if !valid && got != (packet.VNetHdr{}) {
				t.Errorf("header of %d bytes in a segment of %d: %+v, want none", 4*words, 20+n, got)
			}
			if want := uint16(20 + 4*words); valid && got.HdrLen != want {
				t.Errorf("header of %d bytes in a segment of %d: HdrLen %d, want %d", 4*words, 20+n, got.HdrLen, want)
			}
		}
	}
	for n := range packet.TCPHdrLen {
		tcp := ipv4{proto: packet.ProtoTCP, payload: make([]byte, n)}.bytes()
		if n >= packet.TCPCsumOffset+2 {
			putChecksum(tcp, packet.TCPCsumOffset, partial)
		}
		if got := encap.Unfinished(tcp, tunMTU); got != (packet.VNetHdr{}) {
			t.Errorf("TCP header cut to %d bytes: %+v", n, got)
		}
	}
	for n := range packet.UDPHdrLen {
		udp := ipv4{proto: packet.ProtoUDP, payload: make([]byte, n)}.bytes()
		if got := encap.Unfinished(udp, tunMTU); got != (packet.VNetHdr{}) {
			t.Errorf("UDP header cut to %d bytes: %+v", n, got)
		}
	}
}

// If the headers alone fill the MTU, there is no segment size. The kernel refuses a
// GSO size of zero, and a negative one must not wrap around.
func TestUnfinished_TinyMTU(t *testing.T) {
	for _, hdrLen := range []int{20, 60} {
		headers := 20 + hdrLen
		inner := segment(ipv4{}, hdrLen, 3000, partial)
		for mtu := -1; mtu <= 600; mtu++ {
			got := encap.Unfinished(inner, mtu)
			if room := mtu - headers; room > 0 {
				if want := superpacket(uint16(headers), 20, uint16(room)); got != want {
					t.Errorf("mtu %d, headers of %d: %+v, want %+v", mtu, headers, got, want)
				}
				continue
			}
			if !got.NeedsCsum() || got.GSOType != packet.VNetGSONone && (got.GSOSize == 0 || got.GSOSize > 3000) {
				t.Errorf("mtu %d, headers of %d: %+v", mtu, headers, got)
			}
		}
	}
}

// Finishing an unfinished packet gives the complete one, and finishing a complete
// packet that looks unfinished by chance does not change it.
func TestUnfinished_ThenFinished(t *testing.T) {
	tests := []struct {
		name          string
		partial, want packet.IPv4
	}{
		{"TCP", segment(ipv4{}, 32, 101, partial), segment(ipv4{}, 32, 101, complete)},
		{"UDP", datagram(ipv4{}, 101, partial), datagram(ipv4{}, 101, complete)},
		{"superpacket", segment(ipv4{}, 32, 60000, partial), segment(ipv4{}, 32, 60000, complete)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := encap.Unfinished(tt.partial, tunMTU)
			if !packet.FinishChecksum(tt.partial, h) {
				t.Fatalf("%+v does not name a field of the packet", h)
			}
			if !bytes.Equal(tt.partial, tt.want) {
				t.Error("the finished packet is not the complete one")
			}
		})
	}

	t.Run("complete by chance", func(t *testing.T) {
		// The data are chosen so that the checksum is the pseudo-header sum.
		p := datagram(ipv4{}, 2, complete)
		pseudo := packet.PseudoHeaderSum(p)
		data := p.HdrLen() + packet.UDPHdrLen
		putWord(p, data, ^packet.Sum(p.Payload()[:packet.UDPCsumOffset], packet.Sum([]byte{byte(pseudo >> 8), byte(pseudo)}, pseudo)))
		putChecksum(p, packet.UDPCsumOffset, complete)
		whole := bytes.Clone(p)
		if got := packet.UDP(p.Payload()).Checksum(); got != pseudo {
			t.Fatalf("checksum %#04x, not %#04x: the test is wrong", got, pseudo)
		}
		h := encap.Unfinished(p, tunMTU)
		if !packet.FinishChecksum(p, h) || !bytes.Equal(p, whole) {
			t.Errorf("%+v changed a complete packet", h)
		}
	})
}
