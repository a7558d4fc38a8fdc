package encap

import (
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Decapsulator checks received packets and strips their outer headers. It is
// immutable, and safe for concurrent use.
type Decapsulator struct {
	local, remote [4]byte
	anyLocal      bool // in place of local
	protocol      uint8
	host          *Host
}

// NewDecapsulator returns a Decapsulator for packets from o.Remote to o.Local, or with
// o.AnyLocal to any address that the kernel takes for this host's (O11). No inner packet may
// have an address of host as its source (G2); host may be nil. The error names the field of o
// that is invalid.
func NewDecapsulator(o Outer, host *Host) (*Decapsulator, error) {
	local, remote, err := o.addresses()
	if err != nil {
		return nil, err
	}
	return &Decapsulator{local: local, remote: remote, anyLocal: o.AnyLocal, protocol: o.Format.Protocol, host: host}, nil
}

// Decap returns the inner packet of an outer one, cut to its own total length. It
// shares the memory of outer; its ECN bits may have been rewritten (R5). If the
// packet is dropped, Decap returns nil and the reason.
func (d *Decapsulator) Decap(outer packet.IPv4) (packet.IPv4, stats.Reason) {
	if !outer.Valid() || outer.Protocol() != d.protocol || outer.IsFragment() {
		return nil, stats.Malformed // a raw socket returns no such packet
	}
	if outer.Source() != d.remote || outer.Destination() != d.local && !d.anyLocal { // G1
		return nil, stats.WrongPeer
	}
	inner := packet.IPv4(outer.Payload())
	if !inner.Valid() { // R4
		return nil, stats.Malformed
	}
	n := inner.TotalLength()
	inner = inner[:n:n]
	tos, why := decapECN(outer.TOS(), inner.TOS())
	switch {
	case why.Dropped():
		return nil, why
	case inner.TTL() == 0: // G3
		return nil, stats.TTLExpired
	case d.martian(inner):
		return nil, stats.Martian
	}
	if tos != inner.TOS() {
		inner.RewriteTOS(tos)
	}
	return inner, why
}

// martian reports whether the inner addresses are impossible for a received
// packet (G2; RFC 1812 §5.3.7). Multicast destinations are fine: routing protocols
// run over tunnels.
func (d *Decapsulator) martian(inner packet.IPv4) bool {
	src, dst := inner.Source(), inner.Destination()
	return !unicast(src) || dst[0] == 0 || dst[0] == 127 || d.host.has(src)
}
