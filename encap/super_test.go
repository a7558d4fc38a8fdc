package encap_test

import (
	"bytes"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
)

// tcpSegment describes a TCP packet; zero fields give an acknowledgment from
// 10.0.0.1 to 10.0.0.2.
type tcpSegment struct {
	ip       ipv4
	port     uint16 // of the source
	seq, ack uint32
	flags    uint8 // beside ACK
	noAck    bool
	reserved uint8 // the four bits after the data offset
	window   uint16
	urgent   uint16
	options  []byte // a multiple of 4 bytes
	data     []byte
}

// build returns the packet. It computes the checksum without the code under test.
func (s tcpSegment) build(state checksumState) packet.IPv4 {
	h := make([]byte, packet.TCPHdrLen, packet.TCPHdrLen+len(s.options)+len(s.data))
	putWord(h, 0, s.port)
	putWord(h, 2, 80)
	putLong(h, 4, s.seq)
	putLong(h, 8, s.ack)
	h[12] = byte((packet.TCPHdrLen+len(s.options))/4)<<4 | s.reserved
	h[13] = s.flags
	if !s.noAck {
		h[13] |= packet.TCPAck
	}
	putWord(h, 14, s.window)
	putWord(h, 18, s.urgent)
	s.ip.proto = packet.ProtoTCP
	s.ip.payload = append(append(h, s.options...), s.data...)
	p := s.ip.bytes()
	slowChecksum(p, packet.TCPCsumOffset, state)
	return p
}

// segments returns the result of tcp_gso_segment and inet_gso_segment.
func (s tcpSegment) segments(mss int) []packet.IPv4 {
	var all []packet.IPv4
	for data := s.data; len(data) > 0; {
		n := min(mss, len(data))
		one := s
		one.data, data = data[:n], data[n:]
		if len(all) > 0 {
			one.flags &^= packet.TCPCwr
		}
		if len(data) > 0 {
			one.flags &^= packet.TCPFin | packet.TCPPsh
		}
		one.seq += uint32(mss * len(all))
		one.ip.id += uint16(len(all))
		all = append(all, one.build(complete))
	}
	return all
}

// udpDatagram describes a UDP packet.
type udpDatagram struct {
	ip   ipv4
	port uint16 // of the source
	data []byte
}

func (s udpDatagram) build(state checksumState) packet.IPv4 {
	h := make([]byte, packet.UDPHdrLen, packet.UDPHdrLen+len(s.data))
	putWord(h, 0, s.port)
	putWord(h, 2, 53)
	putWord(h, 4, uint16(packet.UDPHdrLen+len(s.data)))
	s.ip.proto = packet.ProtoUDP
	s.ip.payload = append(h, s.data...)
	p := s.ip.bytes()
	slowChecksum(p, packet.UDPCsumOffset, state)
	return p
}

// segments returns the result of __udp_gso_segment and inet_gso_segment.
func (s udpDatagram) segments(size int) []packet.IPv4 {
	var all []packet.IPv4
	for data := s.data; len(data) > 0; {
		n := min(size, len(data))
		one := s
		one.data, data = data[:n], data[n:]
		one.ip.id += uint16(len(all))
		all = append(all, one.build(complete))
	}
	return all
}

func putLong(b []byte, at int, v uint32) {
	putWord(b, at, uint16(v>>16))
	putWord(b, at+2, uint16(v))
}

// slowSum follows RFC 1071 §4.1 literally.
func slowSum(b []byte, initial uint16) uint16 {
	sum := uint64(initial)
	for i, v := range b {
		sum += uint64(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// slowPseudoSum returns the sum of the pseudo-header (RFC 9293 §3.1, RFC 768).
func slowPseudoSum(p packet.IPv4) uint16 {
	pseudo := append(bytes.Clone(p[12:20]), 0, p.Protocol(), 0, 0)
	putWord(pseudo, 10, uint16(p.TotalLength()-p.HdrLen()))
	return slowSum(pseudo, 0)
}

// slowTransportSum is 0xffff if p's TCP or UDP checksum is right.
func slowTransportSum(p packet.IPv4) uint16 { return slowSum(p[p.HdrLen():], slowPseudoSum(p)) }

func slowChecksum(p packet.IPv4, offset int, state checksumState) {
	at := p.HdrLen() + offset
	switch state {
	case none:
		putWord(p, at, 0)
	case partial:
		putWord(p, at, slowPseudoSum(p))
	case complete:
		putWord(p, at, 0)
		sum := ^slowTransportSum(p)
		if sum == 0 && p.Protocol() == packet.ProtoUDP {
			sum = 0xffff
		}
		putWord(p, at, sum)
	}
}

// superHdr returns the virtio-net header of the superpacket p, for segments of size
// bytes of payload.
func superHdr(p packet.IPv4, size int) packet.VNetHdr {
	h := packet.VNetHdr{
		Flags:     packet.VNetNeedsCsum,
		GSOSize:   uint16(size),
		CsumStart: uint16(p.HdrLen()),
	}
	if p.Protocol() == packet.ProtoTCP {
		h.GSOType, h.CsumOffset = packet.VNetGSOTCPv4, packet.TCPCsumOffset
		h.HdrLen = h.CsumStart + uint16(packet.TCP(p.Payload()).HdrLen())
	} else {
		h.GSOType, h.CsumOffset = packet.VNetGSOUDPL4, packet.UDPCsumOffset
		h.HdrLen = h.CsumStart + packet.UDPHdrLen
	}
	return h
}

// cut returns the segments of p, headers and payload in one. It fails unless Next
// writes the headers only, to the memory given, and the payload is p's own memory.
func cut(t *testing.T, p packet.IPv4, h packet.VNetHdr) []packet.IPv4 {
	t.Helper()
	before := bytes.Clone(p)
	segments, ok := encap.Segment(p, h)
	if !ok {
		t.Fatalf("Segment(%d bytes, %+v) = false", len(p), h)
	}
	hdrLen := p.HdrLen() + packet.UDPHdrLen
	if p.Protocol() == packet.ProtoTCP {
		hdrLen = p.HdrLen() + packet.TCP(p.Payload()).HdrLen()
	}
	longest := segments.PacketLen()
	const guard = 4
	arena := bytes.Repeat([]byte{0xee}, guard+hdrLen+guard)
	at := hdrLen
	var all []packet.IPv4
	for {
		hdr, payload := segments.Next(arena[guard : guard+hdrLen : guard+hdrLen])
		if hdr == nil {
			if payload != nil {
				t.Error("payload without headers")
			}
			break
		}
		if len(hdr) != hdrLen || &hdr[0] != &arena[guard] {
			t.Fatalf("headers of %d bytes, not the %d given", len(hdr), hdrLen)
		}
		if len(payload) == 0 || len(payload) > int(h.GSOSize) || at+len(payload) > len(p) || &payload[0] != &p[at] {
			t.Fatalf("segment %d: %d bytes that are not the superpacket's at %d", len(all), len(payload), at)
		}
		if cap(payload) != len(payload) {
			t.Fatalf("segment %d: an append to its payload would write to the next", len(all))
		}
		at += len(payload)
		all = append(all, append(packet.IPv4(bytes.Clone(hdr)), payload...))
		if len(all[len(all)-1]) > longest || len(all) == 1 && len(all[0]) != longest {
			t.Fatalf("segment %d has %d bytes, PacketLen said %d", len(all)-1, len(all[len(all)-1]), longest)
		}
	}
	if at != len(p) {
		t.Errorf("the segments end at %d of %d bytes", at, len(p))
	}
	if !bytes.Equal(p, before) {
		t.Error("the superpacket changed")
	}
	for _, i := range []int{0, 1, 2, 3, guard + hdrLen, guard + hdrLen + 3} {
		if arena[i] != 0xee {
			t.Error("it wrote beyond the memory for headers")
		}
	}
	return all
}

// kernelView returns the packets that the kernel makes of s, as Segment does, and
// fails if the kernel would refuse s, or Count or Len is wrong.
func kernelView(t *testing.T, s *encap.Super, mtu int) []packet.IPv4 {
	t.Helper()
	p := packet.IPv4(bytes.Join(s.Parts, nil))
	if s.Count == 1 {
		if len(s.Parts) != 1 || s.Len != len(p) {
			t.Fatalf("one packet of %d bytes: %d parts, Len %d", len(p), len(s.Parts), s.Len)
		}
		if want := encap.Unfinished(p, mtu); s.VNet != want {
			t.Fatalf("one packet: %+v, want %+v", s.VNet, want)
		}
		return []packet.IPv4{p}
	}
	if !p.Valid() || p.TotalLength() != len(p) || slowSum(p[:p.HdrLen()], 0) != 0xffff {
		t.Fatalf("superpacket of %d bytes with the header % x", len(p), p[:20])
	}
	if want := superHdr(p, int(s.VNet.GSOSize)); s.VNet != want {
		t.Fatalf("superpacket with %+v, want %+v", s.VNet, want)
	}
	if len(s.Parts[0]) != int(s.VNet.HdrLen)+int(s.VNet.GSOSize) {
		t.Fatalf("first part of %d bytes, %+v", len(s.Parts[0]), s.VNet)
	}
	at := p.HdrLen() + int(s.VNet.CsumOffset)
	if got := slowSum(p[at:at+2], 0); got != slowPseudoSum(p) {
		t.Fatalf("checksum field %#04x, want the pseudo-header's sum %#04x", got, slowPseudoSum(p))
	}
	if p.Protocol() == packet.ProtoUDP && packet.UDP(p.Payload()).Length() != len(p.Payload()) {
		t.Fatalf("UDP length %d of %d", packet.UDP(p.Payload()).Length(), len(p.Payload()))
	}
	all := cut(t, p, s.VNet)
	total := 0
	for _, one := range all {
		total += len(one)
	}
	if len(all) != s.Count || len(s.Parts) != s.Count || total != s.Len {
		t.Fatalf("%d packets of %d bytes; Count %d, Len %d, %d parts", len(all), total, s.Count, s.Len, len(s.Parts))
	}
	return all
}
