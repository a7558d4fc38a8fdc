package encap

import "goipip/internal/packet"

// Segments cuts a TCP or UDP superpacket of up to 64 KiB into segments, as the
// kernel does (tcp_gso_segment, __udp_gso_segment and inet_gso_segment in
// net/ipv4). The zero value has no segments.
type Segments struct {
	hdr     packet.IPv4 // IP and transport header of the superpacket
	ipLen   int         // of the IP header in hdr, in bytes
	payload []byte      // not yet returned
	size    int         // payload of each segment but the last, in bytes
	sum     uint16      // of the pseudo-header without the length
	tcp     bool
	seq     uint32
	flags   uint8
	id      uint16
}

// Segment returns the segments of the superpacket p, which h describes. It reports
// false if h contradicts p, or p has no payload. The caller keeps p unchanged until
// Next has returned nil.
func Segment(p packet.IPv4, h packet.VNetHdr) (s Segments, ok bool) {
	if !p.Valid() || p.TotalLength() != len(p) || p.IsFragment() ||
		!h.NeedsCsum() || int(h.CsumStart) != p.HdrLen() || h.GSOSize == 0 {
		return s, false
	}
	s = Segments{
		ipLen: p.HdrLen(),
		size:  int(h.GSOSize),
		sum:   packet.AddressSum(p),
		id:    p.ID(),
	}
	hdrLen := s.ipLen
	switch gso := h.GSOType &^ packet.VNetGSOECN; {
	case gso == packet.VNetGSOTCPv4 && p.Protocol() == packet.ProtoTCP:
		tcp := packet.TCP(p.Payload())
		if !tcp.Valid() {
			return s, false
		}
		s.tcp, s.seq, s.flags = true, tcp.Seq(), tcp.Flags()
		hdrLen += tcp.HdrLen()
	case gso == packet.VNetGSOUDPL4 && p.Protocol() == packet.ProtoUDP:
		if !packet.UDP(p.Payload()).Valid() {
			return s, false
		}
		hdrLen += packet.UDPHdrLen
	default:
		return s, false
	}
	if len(p) == hdrLen {
		return Segments{}, false // there would be no segment
	}
	s.hdr, s.payload = p[:hdrLen], p[hdrLen:]
	return s, true
}

// PacketLen returns the length of the next segment, which is the longest of the
// remaining ones, from its IP header on, in bytes.
func (s *Segments) PacketLen() int { return len(s.hdr) + min(s.size, len(s.payload)) }

// Next writes the headers of the next segment to hdr, which is at least as long as
// the superpacket's headers, and returns them and the segment's payload, a part of
// the superpacket's. After the last segment it returns nil.
func (s *Segments) Next(hdr packet.IPv4) (packet.IPv4, []byte) {
	if len(s.payload) == 0 {
		return nil, nil
	}
	n := min(s.size, len(s.payload))
	piece := s.payload[:n:n]
	s.payload = s.payload[n:]

	hdr = hdr[:copy(hdr, s.hdr)]
	hdr.SetTotalLength(len(hdr) + n)
	hdr.SetID(s.id)
	hdr.UpdateChecksum()
	s.id++
	if s.tcp {
		s.finishTCP(packet.TCP(hdr[s.ipLen:]), piece)
	} else {
		s.finishUDP(packet.UDP(hdr[s.ipLen:]), piece)
	}
	return hdr, piece
}

func (s *Segments) finishTCP(tcp packet.TCP, payload []byte) {
	flags := s.flags
	if len(s.payload) > 0 {
		flags &^= packet.TCPFin | packet.TCPPsh
	}
	tcp.SetFlags(flags)
	s.flags &^= packet.TCPCwr // only the first segment has it
	tcp.SetSeq(s.seq)
	s.seq += uint32(len(payload))
	tcp.SetChecksum(0)
	tcp.SetChecksum(^s.transportSum(tcp, payload))
}

func (s *Segments) finishUDP(udp packet.UDP, payload []byte) {
	udp.SetLength(len(udp) + len(payload))
	udp.SetChecksum(0)
	sum := ^s.transportSum(udp, payload)
	if sum == 0 {
		sum = 0xffff // 0 means no checksum (RFC 768)
	}
	udp.SetChecksum(sum)
}

// transportSum returns the sum of pseudo-header, header and payload.
func (s *Segments) transportSum(hdr, payload []byte) uint16 {
	pseudo := packet.AddSums(s.sum, uint16(len(hdr)+len(payload)))
	return packet.Sum(payload, packet.Sum(hdr, pseudo))
}
