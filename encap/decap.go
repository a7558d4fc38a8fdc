package encap

import (
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Decapsulator strips and checks what a tunnel receives. It never changes, so that any
// number of goroutines may use it.
type Decapsulator struct {
	format        Format
	local, remote [4]byte
	host          *Host
}

// NewDecapsulator returns a Decapsulator for the packets that the other end of o sends:
// its Format, and its addresses reversed. No inner packet may come from an address of
// host (G2). The error names an address that is missing or not IPv4.
func NewDecapsulator(o Outer, host *Host) (*Decapsulator, error) {
	l, r, err := pair(o.Local, o.Remote)
	if err != nil {
		return nil, err
	}
	return &Decapsulator{format: o.Format, local: l, remote: r, host: host}, nil
}

// Decap returns the inner packet of an outer one, cut to its own total length.
// It is a part of outer's memory; its ECN bits may have been rewritten (R5). With
// a reason to drop the packet, nothing is returned.
func (d *Decapsulator) Decap(outer packet.IPv4) (packet.IPv4, stats.Reason) {
	if !outer.Valid() || outer.Protocol() != d.format.Protocol || outer.IsFragment() {
		return nil, stats.Malformed // no raw socket returns that
	}
	if outer.Source() != d.remote || outer.Destination() != d.local { // G1
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

// martian reports whether the inner addresses are impossible for a packet from
// outside (G2; RFC 1812 §5.3.7). Multicast destinations are fine: routing
// protocols run over tunnels.
func (d *Decapsulator) martian(inner packet.IPv4) bool {
	src, dst := inner.Source(), inner.Destination()
	return !unicast(src) || dst[0] == 0 || dst[0] == 127 || d.host.has(src)
}
