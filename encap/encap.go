// Package encap turns inner IPv4 packets into ipip packets and back (RFC 2003,
// IP protocol 4): bytes in, bytes out. It holds no descriptor, clock, goroutine
// or log; how a packet ends it returns as a [stats.Reason].
//
// Rule ids in comments (T1, R4, G2 …) are those of docs/rules.md: T transmit,
// R receive, O device and options, G where goipip is stricter than Linux.
package encap

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"

	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Format is what a tunnel's packets have before the inner one.
type Format struct {
	Protocol uint8 // of the outer header
	HdrLen   int   // what encapsulation adds, in bytes; at most maxOuterLen
}

// IPIP is an IPv4 header without options (RFC 2003, T11).
var IPIP = Format{Protocol: packet.ProtoIPIP, HdrLen: packet.IPv4HdrLen}

// maxOuterLen is the most that a Format adds, in bytes.
const maxOuterLen = packet.IPv4HdrLen

// Outer describes the outer header of a tunnel's packets, in the terms of
// ip-tunnel(8).
type Outer struct {
	Format        Format
	Local, Remote netip.Addr // source and destination, both IPv4
	TTL           uint8      // 1 … 255; 0 takes each inner packet's (O3)
	TOS           uint8      // its ECN bits are ignored (O4)
	InheritTOS    bool       // take each inner packet's in place of TOS
	NoPMTUDisc    bool       // set DF only where the inner packet has it (O5)
}

// Encapsulator writes outer headers. It never changes, so that any number of goroutines
// may use it.
type Encapsulator struct {
	outer    Outer
	template [maxOuterLen]byte
	ids      *IDs
	host     *Host
}

// IDs is the sequence of IDs in the outer headers of one pair of addresses (RFC 6864),
// which goes on from one Encapsulator to the next. It is safe for concurrent use.
type IDs struct{ last atomic.Uint64 }

// NewIDs returns a sequence that begins anywhere: hardly with the IDs that a run before
// this one used last.
func NewIDs() *IDs {
	ids := &IDs{}
	ids.last.Store(uint64(rand.Uint32()))
	return ids
}

// next returns an ID that is not among the last 65534. It is never 0, which would ask a
// raw socket to choose (raw(7)).
func (ids *IDs) next() uint16 { return uint16(ids.last.Add(1)%0xffff) + 1 }

// NewEncapsulator returns an Encapsulator for o, whose IDs are ids. By the addresses of
// host it knows the outer headers of this host's tunnels (T14). The error names an
// address that is missing or not IPv4.
func NewEncapsulator(o Outer, ids *IDs, host *Host) (*Encapsulator, error) {
	local, remote, err := pair(o.Local, o.Remote)
	if err != nil {
		return nil, err
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

// HdrLen returns what encapsulation adds to a packet, in bytes.
func (e *Encapsulator) HdrLen() int { return e.outer.Format.HdrLen }

// Encap writes the outer header for the packet inner to hdr, which has at least
// HdrLen bytes and does not overlap inner. On the wire, inner follows it
// unchanged. With a result other than stats.Deliver, hdr is not written.
func (e *Encapsulator) Encap(hdr []byte, inner packet.IPv4) stats.Reason {
	if why := e.Check(inner); why != stats.Deliver {
		return why
	}
	if len(inner) > packet.IPv4MaxLen-e.HdrLen() { // T1
		return stats.Malformed
	}
	e.EncapHeader(hdr, inner, len(inner))
	return stats.Deliver
}

// Check returns stats.Deliver for an inner packet that may be encapsulated, or the
// reason to drop it. A superpacket may be longer than what fits an outer packet.
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

// EncapHeader does the same for a packet that needs no check, because it was made
// of one that passed: a fragment or a segment. Of inner only the header is read, and
// length is that of the whole inner packet, in bytes.
func (e *Encapsulator) EncapHeader(hdr []byte, inner packet.IPv4, length int) {
	outer := packet.IPv4(hdr[:e.HdrLen()])
	copy(outer, e.template[:])
	outer.SetTotalLength(e.HdrLen() + length)

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
	if !outer.DF() { // T11: with DF, an ID of 0 is as good as any (RFC 6864 §4.1)
		outer.SetID(e.ids.next())
	}
	outer.UpdateChecksum()
}

// ClearDF makes of outer, which Encap wrote, a header that permits fragments.
func (e *Encapsulator) ClearDF(outer packet.IPv4) {
	outer.SetDF(false)
	outer.SetID(e.ids.next())
	outer.UpdateChecksum()
}

// loops reports whether a packet came out of this tunnel, or out of the other end
// of it, and was routed into it again (G4, RFC 2003 §3.2).
func (e *Encapsulator) loops(inner packet.IPv4) bool {
	src := inner.Source()
	template := packet.IPv4(e.template[:])
	return src == template.Destination() ||
		src == template.Source() && inner.Destination() == template.Destination() && inner.Protocol() == packet.ProtoIPIP
}

// maxNested is how many outer headers of this host a packet may have.
const maxNested = 4

// tooDeep reports whether a packet went through so many tunnels of this host, each
// within the next, that there shall be no further one (T14). Linux counts how deep
// its functions call each other (iptunnel_xmit in net/ipv4/ip_tunnel_core.c); here
// the outer headers are what is left of that.
func (e *Encapsulator) tooDeep(p packet.IPv4) bool {
	for depth := 1; nested(p) && e.host.has(p.Source()); depth++ {
		if depth == maxNested {
			return true
		}
		if p.FragmentOffset() != 0 {
			return false // nobody knows what is in it
		}
		p = p[p.HdrLen():]
	}
	return false
}

// nested reports whether p, which may be only the start of a packet, has a whole
// header and carries another packet.
func nested(p packet.IPv4) bool {
	return len(p) >= packet.IPv4HdrLen && p.Version() == 4 && p.Protocol() == packet.ProtoIPIP &&
		p.HdrLen() >= packet.IPv4HdrLen && p.HdrLen() <= len(p)
}

// pair checks the two ends of a tunnel.
func pair(local, remote netip.Addr) (l, r [4]byte, err error) {
	if !local.Is4() {
		return l, r, fmt.Errorf("local address %q: not an IPv4 address", local)
	}
	if !remote.Is4() {
		return l, r, fmt.Errorf("remote address %q: not an IPv4 address", remote)
	}
	return local.As4(), remote.As4(), nil
}
