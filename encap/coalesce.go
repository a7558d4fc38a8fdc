package encap

import (
	"bytes"

	"goipip/internal/packet"
)

// Coalescer merges received packets of one flow into superpackets: TCP segments
// that follow each other, and UDP datagrams of one size, as the kernel's GRO does
// (tcp_gro_receive, udp_gro_receive_segment). It changes nothing that a receiver
// could see: what does not fit together to the last bit of its headers, or has a
// wrong checksum, stays alone, and the packets of a flow stay in their order.
//
// One goroutine owns it. A batch is a number of Adds and one Take.
type Coalescer struct {
	supers []Super // those before n are of this batch
	n      int
	added  int // packets in this batch
}

// Link is what a Coalescer must know of the link that packets go to. The goroutine of
// the Coalescer owns it.
type Link struct {
	MTU      int  // in bytes, for [Unfinished]
	TCP, UDP bool // the kernel takes superpackets: of UDP with USO (Linux 6.2)
}

// Super is one packet for the kernel: a received one, or several in one.
type Super struct {
	VNet  packet.VNetHdr // what the kernel has to know about it
	Parts [][]byte       // its bytes, the first part with all headers
	Count int            // of received packets in it
	Len   int            // of these, from the inner IP header on, in bytes
	First int            // the number of the first of them in its batch, from 0

	packets  [][]byte // as received
	parts    [][]byte // memory for Parts of more than one
	flow     flow
	open     bool   // may take another packet
	push     bool   // the last packet has PSH
	verified bool   // the first packet has right checksums
	hdrLen   int    // of IP and transport header, in bytes
	size     int    // of each packet's payload but the last, in bytes
	seq      uint32 // that follows
	original [maxTransportHdrLen]byte
}

// maxTransportHdrLen is the length of the longest headers that are merged, in
// bytes.
const maxTransportHdrLen = packet.IPv4HdrLen + packet.TCPMaxHdrLen

// flow tells which packets must stay in order.
type flow struct {
	link                *Link
	source, destination [4]byte
	ports               [4]byte
	protocol            uint8
}

// maxCount is the most packets of one Super: what a kernel takes of UDP
// (UDP_MAX_SEGMENTS, before Linux 6.10).
const maxCount = 64

// NewCoalescer returns a Coalescer for batches of up to n packets.
func NewCoalescer(n int) *Coalescer { return &Coalescer{supers: make([]Super, n)} }

// Add appends a decapsulated packet for a link to the batch. Packets for different Links
// have nothing to do with each other. The packet's memory must stay as it is until the
// Supers of the next Take are done with, which may change its headers.
func (c *Coalescer) Add(p packet.IPv4, link *Link) {
	f, hdrLen, mergeable := c.classify(p, link)
	h := Unfinished(p, link.MTU)
	mergeable = mergeable && h == packet.VNetHdr{}
	first := c.added
	c.added++
	if s := c.find(f); s != nil {
		if mergeable && s.append(p, hdrLen) {
			return
		}
		s.open = false // what comes now must stay behind it
	}
	s := &c.supers[c.n]
	c.n++
	s.packets = append(s.packets[:0], p)
	s.Parts = s.packets
	s.VNet, s.Count, s.Len, s.First = h, 1, len(p), first
	s.flow, s.hdrLen, s.size = f, hdrLen, len(p)-hdrLen
	s.verified, s.push = false, false
	s.open = mergeable
	if mergeable && f.protocol == packet.ProtoTCP {
		tcp := packet.TCP(p[packet.IPv4HdrLen:])
		s.open = tcp.Flags()&packet.TCPPsh == 0
		s.seq = tcp.Seq() + uint32(s.size)
	}
}

// Take ends the batch and returns it, in the order of Add. It is valid until the
// next Add.
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

// find returns the newest Super of the flow that a packet may still join or must
// stay behind.
func (c *Coalescer) find(f flow) *Super {
	for i := c.n - 1; i >= 0; i-- {
		if s := &c.supers[i]; s.open && s.flow == f {
			return s
		}
	}
	return nil
}

// closeAll closes the Supers between two hosts, ahead of a packet that does not
// tell which flow between them it is of: a fragment, or one with a cut header.
func (c *Coalescer) closeAll(f flow) {
	for i := range c.n {
		if s := &c.supers[i]; s.flow.link == f.link && s.flow.source == f.source && s.flow.destination == f.destination {
			s.open = false
		}
	}
}

// classify returns the flow of p, the length of its headers, and whether it is of
// the kind that may be merged with others. Anything unusual is not.
func (c *Coalescer) classify(p packet.IPv4, link *Link) (f flow, hdrLen int, mergeable bool) {
	f = flow{link: link, source: p.Source(), destination: p.Destination(), protocol: p.Protocol()}
	if p.IsFragment() {
		c.closeAll(f)
		return f, 0, false
	}
	plain := p.HdrLen() == packet.IPv4HdrLen && p.TOS()&ecnMask != ecnCE && !p.Reserved()
	switch f.protocol {
	case packet.ProtoTCP:
		tcp := packet.TCP(p.Payload())
		if !tcp.Valid() {
			c.closeAll(f)
			return f, 0, false
		}
		f.ports = tcp.Ports()
		hdrLen = p.HdrLen() + tcp.HdrLen()
		flags := tcp.Flags() &^ packet.TCPPsh
		return f, hdrLen, link.TCP && plain && flags == packet.TCPAck && tcp.Reserved() == 0 && tcp.Urgent() == 0 && len(p) > hdrLen
	case packet.ProtoUDP:
		udp := packet.UDP(p.Payload())
		if !udp.Valid() {
			c.closeAll(f)
			return f, 0, false
		}
		f.ports = udp.Ports()
		hdrLen = p.HdrLen() + packet.UDPHdrLen
		return f, hdrLen, link.UDP && plain && udp.Length() == len(udp) && udp.Checksum() != 0 && len(p) > hdrLen
	}
	return f, 0, false
}

// append merges p, which is mergeable, into s, or reports that it does not fit.
func (s *Super) append(p packet.IPv4, hdrLen int) bool {
	first := packet.IPv4(s.packets[0])
	n := len(p) - hdrLen
	if n > s.size || hdrLen != s.hdrLen || s.Count == maxCount ||
		s.hdrLen+s.size*s.Count+n > packet.IPv4MaxLen || !s.sameIP(first, p) {
		return false
	}
	push := false
	if s.flow.protocol == packet.ProtoTCP {
		tcp := packet.TCP(p[packet.IPv4HdrLen:])
		if !s.sameTCP(packet.TCP(first[packet.IPv4HdrLen:]), tcp) {
			return false
		}
		push = tcp.Flags()&packet.TCPPsh != 0
	}
	s.verified = s.verified || intact(first)
	if !s.verified || !intact(p) {
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

// sameIP reports whether the IP headers differ only as those of segments do. With
// DF, the ID may count or stand still (inet_gro_receive in net/ipv4/af_inet.c).
func (s *Super) sameIP(first, p packet.IPv4) bool {
	return p.TOS() == first.TOS() && p.TTL() == first.TTL() && p.DF() == first.DF() &&
		(p.ID() == first.ID()+uint16(s.Count) || p.DF() && p.ID() == first.ID())
}

// sameTCP reports whether the segment t follows those in s.
func (s *Super) sameTCP(first, t packet.TCP) bool {
	return t.Seq() == s.seq && t.AckAndWindow() == first.AckAndWindow() && bytes.Equal(t.Options(), first.Options())
}

// intact reports whether the checksums of an unfragmented TCP or UDP packet are
// right.
func intact(p packet.IPv4) bool {
	return packet.Sum(p[:p.HdrLen()], 0) == 0xffff && packet.Sum(p.Payload(), packet.PseudoHeaderSum(p)) == 0xffff
}

// finish makes of the first packet's headers those of the superpacket.
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

// Split undoes what a kernel that refuses the superpacket does not like, and
// returns the packets as they were received.
func (s *Super) Split() [][]byte {
	if s.Count > 1 {
		copy(s.packets[0], s.original[:s.hdrLen])
	}
	return s.packets
}
