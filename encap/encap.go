// Package encap turns inner IPv4 packets into outer ones and back, ipip by
// default (RFC 2003): bytes in, bytes out. It holds no descriptor, clock,
// goroutine or log. The fate of a packet is returned as a [stats.Reason].
//
// An [Encapsulator] and a [Decapsulator] are immutable, and replaced when the
// configuration of a tunnel changes. What outlives them is shared by pointer: the
// [IDs] of a peer and the addresses of the [Host]. Both types are safe for
// concurrent use; a [Coalescer] belongs to one goroutine.
//
// Rule ids in comments (T1, R4, G2 …) refer to docs/rules.md: T transmit,
// R receive, O device and options, G where goipip is stricter than Linux.
package encap

import (
	"errors"
	"fmt"
	"net/netip"

	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Outer describes the outer packets of a tunnel, in the terms of ip-tunnel(8).
type Outer struct {
	Format        Format
	Local, Remote netip.Addr // both IPv4; source and destination of sent packets
	AnyLocal      bool       // receive at any local address (O11); Local may be the zero Addr while nothing is sent
	TTL           uint8      // 1 … 255; 0 inherits the inner one (O3)
	TOS           uint8      // its ECN bits are ignored (O4)
	InheritTOS    bool       // use the inner TOS in place of TOS
	NoPMTUDisc    bool       // set DF only if the inner packet has it (O5)
}

// addresses returns the addresses of a valid Outer. The error names the field
// that is invalid.
func (o *Outer) addresses() (local, remote [4]byte, err error) {
	if err := o.Format.check(); err != nil {
		return local, remote, err
	}
	if !o.Remote.Is4() {
		return local, remote, fmt.Errorf("remote address %q: not an IPv4 address", o.Remote)
	}
	if o.AnyLocal && !o.Local.IsValid() {
		return local, o.Remote.As4(), nil
	}
	if !o.Local.Is4() {
		return local, remote, fmt.Errorf("local address %q: not an IPv4 address", o.Local)
	}
	return o.Local.As4(), o.Remote.As4(), nil
}

// Encapsulator writes outer headers. It is immutable, and safe for concurrent
// use.
type Encapsulator struct {
	outer    Outer
	template [packet.IPv4HdrLen]byte
	ids      *IDs
	host     *Host
}

// NewEncapsulator returns an Encapsulator for o that takes IDs from ids. The
// addresses of host identify outer headers of this host's own tunnels (T14); host may
// be nil. The error names the field of o that is invalid.
func NewEncapsulator(o Outer, ids *IDs, host *Host) (*Encapsulator, error) {
	local, remote, err := o.addresses()
	if err != nil {
		return nil, err
	}
	if ids == nil {
		return nil, errors.New("no sequence of IDs")
	}
	e := &Encapsulator{outer: o, ids: ids, host: host}
	hdr := packet.IPv4(e.template[:])
	hdr.InitHeader()
	hdr.SetProtocol(o.Format.Protocol)
	hdr.SetSource(local)
	hdr.SetDestination(remote)
	hdr.SetTTL(o.TTL)
	hdr.SetTOS(o.TOS)
	hdr.SetDF(!o.NoPMTUDisc)
	return e, nil
}

// HdrLen returns the number of bytes that encapsulation adds to a packet.
func (e *Encapsulator) HdrLen() int { return e.outer.Format.HdrLen }

// Encap writes the outer header of the packet inner to hdr, which has at least
// HdrLen bytes and does not overlap inner. On the wire, inner follows the header
// unchanged. Unless Encap returns stats.Deliver, hdr is not written.
func (e *Encapsulator) Encap(hdr []byte, inner packet.IPv4) stats.Reason {
	if why := e.Check(inner); why != stats.Deliver {
		return why
	}
	if len(inner) > packet.IPv4MaxLen-e.outer.Format.HdrLen { // T1
		return stats.Malformed
	}
	e.EncapHeader(hdr, inner, len(inner))
	return stats.Deliver
}

// Check returns stats.Deliver if inner may be encapsulated, or the reason to drop
// it. It ignores the length, as a superpacket may be too long for one outer packet.
func (e *Encapsulator) Check(inner packet.IPv4) stats.Reason {
	switch {
	case len(inner) == 0 || inner.Version() != 4: // T1, G6
		return stats.NotIPv4
	case len(inner) < packet.IPv4HdrLen: // T1
		return stats.Malformed
	case inner.TTL() == 0: // G3
		return stats.TTLExpired
	case e.loops(inner):
		return stats.Loop
	case e.tooDeep(inner):
		return stats.TooDeep
	}
	return stats.Deliver
}

// EncapHeader is Encap without the checks, for a fragment or segment of a packet
// that has passed Check. It reads only the header of inner; length is that of the
// whole inner packet, in bytes.
func (e *Encapsulator) EncapHeader(hdr []byte, inner packet.IPv4, length int) {
	outer := packet.IPv4(hdr[:packet.IPv4HdrLen])
	copy(outer, e.template[:])
	outer.SetTotalLength(e.outer.Format.HdrLen + length)

	tos := e.outer.TOS
	if e.outer.InheritTOS {
		tos = inner.TOS()
	}
	outer.SetTOS(encapECN(tos, inner.TOS())) // T9
	if e.outer.TTL == 0 {                    // T10
		outer.SetTTL(inner.TTL())
	}
	if inner.DF() { // T5
		outer.SetDF(true)
	}
	if !outer.DF() { // T11: with DF, an ID of 0 will do (RFC 6864 §4.1)
		outer.SetID(e.ids.next())
	}
	outer.UpdateChecksum()
}

// ClearDF permits fragmentation of an outer packet: in the header written by
// Encap, it clears DF and sets an ID.
func (e *Encapsulator) ClearDF(outer packet.IPv4) {
	outer.SetDF(false)
	outer.SetID(e.ids.next())
	outer.UpdateChecksum()
}

// loops reports whether a packet left this tunnel, at either end, and was routed
// into it again (G4, RFC 2003 §3.2).
func (e *Encapsulator) loops(inner packet.IPv4) bool {
	src := inner.Source()
	template := packet.IPv4(e.template[:])
	return src == template.Destination() ||
		src == template.Source() && inner.Destination() == template.Destination() && inner.Protocol() == template.Protocol()
}

// maxNested is the most outer headers of this host that a packet may have.
const maxNested = 4

// tooDeep reports whether a packet went through maxNested tunnels of this host,
// one inside the other (T14). Linux counts nested calls (iptunnel_xmit in
// net/ipv4/ip_tunnel_core.c); here only the outer headers show the nesting.
func (e *Encapsulator) tooDeep(p packet.IPv4) bool {
	for depth := 1; nested(p) && e.host.has(p.Source()); depth++ {
		if depth == maxNested {
			return true
		}
		if p.FragmentOffset() != 0 {
			return false // its payload does not start with a header
		}
		p = p[p.HdrLen():]
	}
	return false
}

// nested reports whether p, which may be cut short, has a whole header and carries
// another IPv4 packet.
func nested(p packet.IPv4) bool { return p.HasHeader() && p.Protocol() == packet.ProtoIPIP }
