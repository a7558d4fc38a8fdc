package oracle_test

import (
	"slices"

	"goipip/internal/packet"
)

// difference is one that there is to be.
type difference struct {
	rule           string
	what           string               // packets it is about
	kernel, goipip string               // what each does
	applies        func(in *input) bool // may be too broad where explains is exact
	explains       func(ref, ours []output) bool
	used           int
}

// differences are all there are. The first that applies and explains is taken.
var differences = []*difference{
	{
		rule:    "G1",
		what:    "ipip packets for the router that are not from the far end",
		kernel:  "tunnel4_rcv answers with ICMP 3/3, and so do its sisters for protocols 41 and 137",
		goipip:  "no socket takes it, and ip_protocol_deliver_rcu answers with ICMP 3/2",
		applies: func(in *input) bool { return in.any(forTunnelModules) },
		explains: func(ref, ours []output) bool {
			return same(ref, mapICMP(ours, [2]uint8{3, 2}, [2]uint8{3, 3}))
		},
	},
	{
		rule:   "G1",
		what:   "the same without a whole inner header",
		kernel: "tunnel4_rcv drops it",
		goipip: "ICMP 3/2",
		applies: func(in *input) bool {
			return in.any(func(p packet.IPv4) bool {
				return forTunnelModules(p) && min(len(p), p.TotalLength())-p.HdrLen() < ipv6HdrLen
			})
		},
		explains: func(ref, ours []output) bool { return len(ref) == 0 && allICMP(ours, 3, 2) },
	},
	{
		rule:   "O11",
		what:   "ipip packets for the router that are not from the far end, while the tunnel has no local address",
		kernel: "tunnel4_rcv answers with ICMP 3/3",
		goipip: "its socket, which cannot be connected, takes and drops it",
		applies: func(in *input) bool {
			return anyLocal && in.any(func(p packet.IPv4) bool { return p.Protocol() == packet.ProtoIPIP })
		},
		explains: func(ref, ours []output) bool { return len(ours) == 0 && allICMP(ref, 3, 3) },
	},
	{
		rule:     "R2",
		what:     "MPLS in IP from the far end",
		kernel:   "ipip_tunnel_rcv drops what is not the tunnel's protocol",
		goipip:   "no socket takes it: ICMP 3/2",
		applies:  func(in *input) bool { return in.any(func(p packet.IPv4) bool { return p.Protocol() == protoMPLS }) },
		explains: func(ref, ours []output) bool { return len(ref) == 0 && allICMP(ours, 3, 2) },
	},
	{
		rule:     "R2",
		what:     "packets of protocol 255",
		kernel:   "no socket takes it: ICMP 3/2",
		goipip:   "its sending socket has this protocol, and takes it",
		applies:  func(in *input) bool { return in.any(func(p packet.IPv4) bool { return p.Protocol() == protoRaw }) },
		explains: func(ref, ours []output) bool { return len(ours) == 0 && allICMP(ref, 3, 2) },
	},
	{
		rule:     "G2",
		what:     "inner addresses that cannot come from there",
		kernel:   "ip_route_input_slow takes sources in 0/8 and 240/4 and destinations in 0/8, but for 0.0.0.0 and 255.255.255.255",
		goipip:   "drops it",
		applies:  func(in *input) bool { return in.delivered(martian) },
		explains: goipipDrops,
	},
	{
		rule:     "G3",
		what:     "an inner TTL of 0 out of the tunnel",
		kernel:   "ip_forward says so to its sender, ICMP 11/0, if its options are right, and else ip_rcv_options does, ICMP 12/0",
		goipip:   "drops it",
		applies:  func(in *input) bool { return in.delivered(func(p packet.IPv4) bool { return p.TTL() == 0 }) },
		explains: func(ref, ours []output) bool { return len(ours) == 0 && allOf(ref, isOwnICMPError) },
	},
	{
		rule:     "G3",
		what:     "an inner TTL of 0 into the tunnel",
		kernel:   "encapsulates it",
		goipip:   "drops it",
		applies:  func(in *input) bool { return in.direct },
		explains: unsentBecause(func(p packet.IPv4) bool { return p.TTL() == 0 }),
	},
	{
		rule:     "G6",
		what:     "another IP version into the tunnel, though the kernel takes it for IPv4",
		kernel:   "encapsulates it",
		goipip:   "drops it",
		applies:  func(in *input) bool { return in.direct },
		explains: unsentBecause(func(p packet.IPv4) bool { return p.Version() != 4 }),
	},
	{
		rule:     "G4",
		what:     "packets into the tunnel that came out of it, or out of its other end",
		kernel:   "encapsulates it",
		goipip:   "drops it",
		applies:  func(in *input) bool { return true },
		explains: unsentBecause(loops),
	},
	{
		rule:    "G7",
		what:    "ICMP errors to inner senders",
		kernel:  "they come from the router, which sends them with a TTL of its own, also about 0/8 and 240/4",
		goipip:  "they come from the inner destination, through the tunnel's link, and not about those addresses",
		applies: func(in *input) bool { return true },
		explains: func(ref, ours []output) bool {
			ref = slices.DeleteFunc(slices.Clone(ref), func(out output) bool {
				about := aboutInner(ipOf(out.frame))
				return about != nil && !(isHost(about.Source()) && isHost(about.Destination()))
			})
			return same(anonymous(ref), anonymous(ours))
		},
	},
	{
		rule:    "T12",
		what:    "packets without DF, in outer packets with DF, that are longer than the path",
		kernel:  "ip_fragment drops it, and tells the router itself, which knows",
		goipip:  "fragments the inner packet",
		applies: func(in *input) bool { return in.dir == encap && in.packets[0].Valid() && !in.packets[0].DF() },
		explains: func(ref, ours []output) bool {
			return len(ref) == 0 && len(ours) > 1 && allOf(ours, func(p packet.IPv4) bool {
				return fromTunnel(p) && p.DF() && packet.IPv4(p.Payload()).IsFragment()
			})
		},
	},
}

const (
	protoMPLS = 137
	protoIPv6 = 41
	protoRaw  = 255

	ipv6HdrLen = 40
)

// explanation returns the difference that explains m, or nil.
func explanation(m *mismatch) *difference {
	for _, d := range differences {
		if d.applies(&m.in) && d.explains(m.outs[0], m.outs[1]) {
			return d
		}
	}
	return nil
}

// unsentBecause explains that only the reference sends packets, of this kind.
func unsentBecause(is func(inner packet.IPv4) bool) func(ref, ours []output) bool {
	return func(ref, ours []output) bool {
		return len(ours) == 0 && allOf(ref, func(p packet.IPv4) bool { return fromTunnel(p) && is(p.Payload()) })
	}
}

func goipipDrops(ref, ours []output) bool { return len(ours) == 0 }

// headers returns all IPv4 headers of a packet, the outermost first.
func headers(p packet.IPv4) []packet.IPv4 {
	var list []packet.IPv4
	for len(p) >= packet.IPv4HdrLen && p.Version() == 4 && p.HdrLen() >= packet.IPv4HdrLen && p.HdrLen() <= len(p) {
		list = append(list, p)
		if p.Protocol() != packet.ProtoIPIP {
			break
		}
		p = p[p.HdrLen():]
	}
	return list
}

// any reports whether a header of an input is as asked.
func (in *input) any(is func(packet.IPv4) bool) bool {
	return slices.ContainsFunc(in.packets, func(p packet.IPv4) bool { return slices.ContainsFunc(headers(p), is) })
}

// delivered reports whether an input is for the tunnel to deliver, and its inner
// packet as asked.
func (in *input) delivered(is func(inner packet.IPv4) bool) bool {
	outer := in.first()
	if in.dir != decap || !outer.Valid() || !fromPeer(outer) {
		return false
	}
	list := headers(outer)
	return len(list) > 1 && is(list[1])
}

// first returns the packet of an input that has the inner header: not a later
// fragment.
func (in *input) first() packet.IPv4 {
	for _, p := range in.packets {
		if len(p) >= packet.IPv4HdrLen && p.FragmentOffset() == 0 {
			return p
		}
	}
	return in.packets[0]
}

func fromPeer(p packet.IPv4) bool {
	return p.Protocol() == packet.ProtoIPIP && p.Source() == remoteAddr.As4() && isForTunnel(p.Destination())
}

func fromTunnel(p packet.IPv4) bool {
	return p.Valid() && p.Protocol() == packet.ProtoIPIP && isOwn(p.Source()) && p.Destination() == remoteAddr.As4()
}

func forTunnelModules(p packet.IPv4) bool {
	return slices.Contains([]uint8{packet.ProtoIPIP, protoIPv6, protoMPLS}, p.Protocol()) && !isMulticast(p.Destination())
}

// anyLocal tells that the tunnels have no local address now (O11).
var anyLocal bool

// isForTunnel reports whether a tunnel takes packets to an address. Without a local address
// it takes those to all that the router does.
func isForTunnel(a [4]byte) bool {
	switch a {
	case localAddr.As4():
		return true
	case [4]byte{192, 168, 6, 255}, [4]byte{10, 1, 0, 255}, [4]byte{255, 255, 255, 255}, [4]byte{224, 0, 0, 1}:
		return anyLocal
	}
	return anyLocal && isOwn(a)
}

func isMulticast(a [4]byte) bool { return a[0]>>4 == 14 }

// martian are the inner packets that G2 is about, but for those of the router's
// own addresses, which the kernel drops too.
func martian(p packet.IPv4) bool {
	src, dst := p.Source(), p.Destination()
	return src[0] == 0 || src[0] == 127 || src[0] >= 224 || dst[0] == 0 || dst[0] == 127
}

// isHost reports whether a is the address of one host on some network.
func isHost(a [4]byte) bool { return a[0] != 0 && a[0] != 127 && a[0] < 224 }

// loops reports whether a packet for the tunnel is one that G4 is about.
func loops(p packet.IPv4) bool {
	return len(p) >= packet.IPv4HdrLen && p.Version() == 4 && (p.Source() == remoteAddr.As4() || fromTunnel(p))
}

// allOf reports whether there are outputs, and all as asked.
func allOf(outs []output, is func(packet.IPv4) bool) bool {
	for _, out := range outs {
		if !is(ipOf(out.frame)) {
			return false
		}
	}
	return len(outs) > 0
}

// innermost returns the packet that is not ipip.
func innermost(p packet.IPv4) packet.IPv4 {
	list := headers(p)
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// allICMP reports whether there are outputs, and all are such messages of the
// router's.
func allICMP(outs []output, kind, code uint8) bool {
	return allOf(outs, func(p packet.IPv4) bool { return isICMP(innermost(p), kind, code) })
}

func isICMP(p packet.IPv4, kind, code uint8) bool {
	if p == nil || p.Protocol() != packet.ProtoICMP || p.FragmentOffset() != 0 || !isOwn(p.Source()) {
		return false
	}
	m := p[p.HdrLen():]
	return len(m) >= icmpHdrLen && m[0] == kind && m[1] == code
}

func isOwnICMPError(p packet.IPv4) bool {
	p = innermost(p)
	return p != nil && isOwn(p.Source()) && p.Protocol() == packet.ProtoICMP && p.FragmentOffset() == 0 &&
		len(p) > p.HdrLen() && packet.IsICMPError(p[p.HdrLen()])
}

// aboutInner returns what an ICMP error to an inner sender quotes, or nil: of a
// packet that was too long (T7), or an error that the tunnel met (T8).
func aboutInner(p packet.IPv4) packet.IPv4 {
	p = innermost(p)
	if p == nil || p.Protocol() != packet.ProtoICMP || p.FragmentOffset() != 0 || len(p) < p.HdrLen()+icmpHdrLen+packet.IPv4HdrLen {
		return nil
	}
	m := p[p.HdrLen():]
	if m[0] != 3 || m[1] != 1 && m[1] != 4 {
		return nil
	}
	return m[icmpHdrLen:]
}

// anonymous returns outputs whose ICMP errors to inner senders come from nowhere.
func anonymous(outs []output) []output {
	outs = slices.Clone(outs)
	for i := range outs {
		if aboutInner(ipOf(outs[i].frame)) == nil {
			continue
		}
		outs[i].frame = slices.Clone(outs[i].frame)
		for _, h := range headers(ipOf(outs[i].frame)) {
			if h.Protocol() == packet.ProtoICMP {
				h.SetSource([4]byte{})
			}
			h.SetID(0)
			h.SetTTL(0)
			setChecksum(h, 0)
		}
	}
	return outs
}

// mapICMP returns outputs in which messages of one type and code are another.
func mapICMP(outs []output, from, to [2]uint8) []output {
	outs = slices.Clone(outs)
	for i := range outs {
		outs[i].frame = slices.Clone(outs[i].frame)
		if p := innermost(ipOf(outs[i].frame)); isICMP(p, from[0], from[1]) {
			m := p[p.HdrLen():]
			m[0], m[1] = to[0], to[1]
			m[2], m[3] = 0, 0
			sum := ^packet.Sum(m, 0)
			m[2], m[3] = byte(sum>>8), byte(sum)
		}
	}
	return outs
}
