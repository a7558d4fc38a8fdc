package encap

import (
	"bytes"

	"goipip/internal/packet"
)

// Coalescer merges received packets of a flow into superpackets, as the kernel's
// GRO does: consecutive TCP segments, and UDP datagrams of one size
// (tcp_gro_receive, udp_gro_receive_segment). The receiver sees no difference:
// packets are merged only if segmentation restores each of them and their checksums
// are right, and the packets of a flow stay in order.
//
// One Coalescer serves any number of links. It belongs to one goroutine. A batch is
// a number of Adds and one Take.
type Coalescer struct {
	supers []Super // the first n are this batch's
	n      int
	added  int // packets in this batch
}

// Link describes the link that packets go to. Its owner may change it between two
// Adds, in the goroutine of the Coalescer.
type Link struct {
	MTU int  // in bytes
	TCP bool // may be merged
	UDP bool // may be merged; needs a kernel with USO (Linux 6.2)
}

// Super is one packet for the kernel: a received one, or several merged.
type Super struct {
	VNet  packet.VNetHdr // describes it to the kernel
	Parts [][]byte       // its bytes; the first part has all headers
	Count int            // received packets in it
	Len   int            // sum of the lengths of these, from the inner IP header on, in bytes
	First int            // number of its first packet in the batch, from 0 in order of Add

	packets  [][]byte // as received
	parts    [][]byte // memory for Parts of a merged packet
	flow     flow
	open     bool   // may take another packet
	push     bool   // the last packet has PSH
	verified bool   // the checksums of the first packet are right
	hdrLen   int    // of IP and transport header, in bytes
	size     int    // payload of each packet but the last, in bytes
	seq      uint32 // of the next segment
	original [maxMergedHdrLen]byte
}

// maxMergedHdrLen is the length of the longest headers of a packet that is merged,
// in bytes.
const maxMergedHdrLen = packet.IPv4HdrLen + packet.TCPMaxHdrLen

// flow identifies the packets that must stay in order.
type flow struct {
	link      *Link
	addresses uint64
	ports     uint32
	protocol  uint8
}

// maxCount is the most packets in one Super: the kernel's limit for UDP before
// Linux 6.10 (UDP_MAX_SEGMENTS).
const maxCount = 64

// NewCoalescer returns a Coalescer for batches of up to n packets.
func NewCoalescer(n int) *Coalescer { return &Coalescer{supers: make([]Super, n)} }

// Add appends a decapsulated packet for the link l to the batch. Packets of
// different Links are independent: they are never merged, and none ends a merge of
// another Link. p must stay unchanged until the Supers of the next Take have been
// used; the Coalescer may change its headers.
func (c *Coalescer) Add(p packet.IPv4, l *Link) {
	number := c.added
	c.added++
	f, hdrLen, mergeable := c.classify(p, l)
	h := Unfinished(p, l.MTU)
	mergeable = mergeable && h == packet.VNetHdr{}
	if s := c.find(f); s != nil {
		if mergeable && s.append(p, hdrLen) {
			return
		}
		s.open = false // later packets must stay behind this one
	}
	s := &c.supers[c.n]
	c.n++
	s.packets = append(s.packets[:0], p)
	s.Parts = s.packets
	s.VNet, s.Count, s.Len, s.First = h, 1, len(p), number
	s.flow, s.hdrLen, s.size = f, hdrLen, len(p)-hdrLen
	s.verified, s.push = false, false
	s.open = mergeable
	if mergeable && f.protocol == packet.ProtoTCP {
		tcp := packet.TCP(p[packet.IPv4HdrLen:])
		s.open = tcp.Flags()&packet.TCPPsh == 0
		s.seq = tcp.Seq() + uint32(s.size)
	}
}

// Take ends the batch and returns it, in the order of the first packets. The Supers
// are valid until the next Add.
func (c *Coalescer) Take() []Super {
	supers := c.supers[:c.n]
	for i := range supers {
		if supers[i].Count > 1 {
			supers[i].finish()
		}
	}
	c.n, c.added = 0, 0
	return supers
}

// find returns the open Super of the flow. There is at most one.
func (c *Coalescer) find(f flow) *Super {
	for i := c.n - 1; i >= 0; i-- {
		if s := &c.supers[i]; s.open && s.flow == f {
			return s
		}
	}
	return nil
}

// closeHosts closes the Supers of a link between two hosts, ahead of a packet of
// an unknown flow between them: a fragment, or one with a truncated transport
// header.
func (c *Coalescer) closeHosts(f flow) {
	for i := range c.n {
		if s := &c.supers[i]; s.flow.link == f.link && s.flow.addresses == f.addresses {
			s.open = false
		}
	}
}

// classify returns the flow of p, the length of its headers, and whether it may be
// merged with other packets: only with data, and without unusual header fields.
func (c *Coalescer) classify(p packet.IPv4, l *Link) (f flow, hdrLen int, mergeable bool) {
	f = flow{link: l, addresses: p.Addresses(), protocol: p.Protocol()}
	if p.IsFragment() {
		c.closeHosts(f)
		return f, 0, false
	}
	plain := p.HdrLen() == packet.IPv4HdrLen && p.TOS()&ecnMask != ecnCE && !p.Reserved()
	switch f.protocol {
	case packet.ProtoTCP:
		tcp := packet.TCP(p.Payload())
		if !tcp.Valid() {
			c.closeHosts(f)
			return f, 0, false
		}
		f.ports = tcp.Ports()
		hdrLen = p.HdrLen() + tcp.HdrLen()
		flags := tcp.Flags() &^ packet.TCPPsh
		return f, hdrLen, l.TCP && plain && flags == packet.TCPAck && tcp.Reserved() == 0 && tcp.Urgent() == 0 && len(p) > hdrLen
	case packet.ProtoUDP:
		udp := packet.UDP(p.Payload())
		if !udp.Valid() {
			c.closeHosts(f)
			return f, 0, false
		}
		f.ports = udp.Ports()
		hdrLen = p.HdrLen() + packet.UDPHdrLen
		return f, hdrLen, l.UDP && plain && udp.Length() == len(udp) && udp.Checksum() != 0 && len(p) > hdrLen
	}
	return f, 0, false
}

// append merges p, which is mergeable and of the same flow, into s, or reports
// false if p does not fit.
func (s *Super) append(p packet.IPv4, hdrLen int) bool {
	first := packet.IPv4(s.packets[0])
	n := len(p) - hdrLen
	if n > s.size || hdrLen != s.hdrLen || s.Count == maxCount ||
		s.hdrLen+s.size*s.Count+n > packet.IPv4MaxLen || !s.continuesIP(first, p) {
		return false
	}
	push := false
	if s.flow.protocol == packet.ProtoTCP {
		tcp := packet.TCP(p[packet.IPv4HdrLen:])
		if !s.continuesTCP(packet.TCP(first[packet.IPv4HdrLen:]), tcp) {
			return false
		}
		push = tcp.Flags()&packet.TCPPsh != 0
	}
	s.verified = s.verified || checksumsValid(first)
	if !s.verified || !checksumsValid(p) {
		return false
	}
	s.packets = append(s.packets, p)
	s.Count++
	s.Len += len(p)
	s.seq += uint32(n)
	s.push = push
	s.open = n == s.size && !push
	return true
}

// continuesIP reports whether the IP header of p is that of the next segment after
// first. With DF, the ID may also be constant (inet_gro_receive in
// net/ipv4/af_inet.c).
func (s *Super) continuesIP(first, p packet.IPv4) bool {
	return p.TOS() == first.TOS() && p.TTL() == first.TTL() && p.DF() == first.DF() &&
		(p.ID() == first.ID()+uint16(s.Count) || p.DF() && p.ID() == first.ID())
}

// continuesTCP reports whether the TCP header t is that of the next segment after
// first.
func (s *Super) continuesTCP(first, t packet.TCP) bool {
	return t.Seq() == s.seq && t.AckAndWindow() == first.AckAndWindow() && bytes.Equal(t.Options(), first.Options())
}

// checksumsValid reports whether the checksums of an unfragmented TCP or UDP packet
// are right.
func checksumsValid(p packet.IPv4) bool {
	return packet.Sum(p[:p.HdrLen()], 0) == 0xffff && packet.Sum(p.Payload(), packet.PseudoHeaderSum(p)) == 0xffff
}

// finish turns the headers of the first packet into those of the superpacket.
func (s *Super) finish() {
	ip := packet.IPv4(s.packets[0])
	copy(s.original[:], ip[:s.hdrLen])
	length := len(ip)
	s.parts = append(s.parts[:0], ip)
	for _, p := range s.packets[1:] {
		s.parts = append(s.parts, p[s.hdrLen:])
		length += len(p) - s.hdrLen
	}
	s.Parts = s.parts
	ip.SetTotalLength(length)
	ip.UpdateChecksum()
	s.VNet = packet.VNetHdr{
		Flags:     packet.VNetNeedsCsum,
		HdrLen:    uint16(s.hdrLen),
		GSOSize:   uint16(s.size),
		CsumStart: packet.IPv4HdrLen,
	}
	pseudo := packet.PseudoHeaderSum(ip)
	if s.flow.protocol == packet.ProtoUDP {
		s.VNet.GSOType, s.VNet.CsumOffset = packet.VNetGSOUDPL4, packet.UDPCsumOffset
		udp := packet.UDP(ip[packet.IPv4HdrLen:])
		udp.SetLength(length - packet.IPv4HdrLen)
		udp.SetChecksum(pseudo)
		return
	}
	s.VNet.GSOType, s.VNet.CsumOffset = packet.VNetGSOTCPv4, packet.TCPCsumOffset
	tcp := packet.TCP(ip[packet.IPv4HdrLen:])
	if s.push {
		tcp.SetFlags(tcp.Flags() | packet.TCPPsh)
	}
	tcp.SetChecksum(pseudo)
}

// Split restores and returns the packets as received, for a kernel that refuses
// the superpacket. They are valid as long as the Super.
func (s *Super) Split() [][]byte {
	if s.Count > 1 {
		copy(s.packets[0], s.original[:s.hdrLen])
	}
	return s.packets
}
