package oracle_test

import (
	"bytes"
	"net/netip"
	"slices"

	"goipip/internal/packet"
)

// canonical returns what counts of an output: where it came out, for which
// neighbour, and all of its bytes but for the IDs that the router chose. A
// checksum that is right is as good as another one.
func canonical(out output) string {
	frame := slices.Clone(out.frame)
	normalize(ipOf(frame))
	const macLen = 6
	if bytes.Equal(frame[:macLen], frame[macLen:2*macLen]) {
		copy(frame, make([]byte, macLen)) // to a neighbour that is not there
	}
	copy(frame[macLen:], make([]byte, macLen)) // the router's
	return string(rune('0'+out.side)) + string(frame)
}

// normalize takes the choices of a router out of a packet: the ID of its headers,
// and the checksums over them. A wrong checksum stays.
func normalize(p packet.IPv4) {
	if len(p) < packet.IPv4HdrLen || p.HdrLen() < packet.IPv4HdrLen || p.HdrLen() > len(p) {
		return
	}
	if packet.Sum(p[:p.HdrLen()], 0) == 0xffff {
		if isOwn(p.Source()) {
			p.SetID(0)
			setChecksum(p, 0)
		}
		clearTimestamps(p)
	}
	if p.FragmentOffset() != 0 {
		return
	}
	switch payload := p[p.HdrLen():]; p.Protocol() {
	case packet.ProtoIPIP:
		normalize(payload)
	case packet.ProtoICMP:
		if !isOwn(p.Source()) || len(payload) < icmpHdrLen || packet.Sum(payload, 0) != 0xffff {
			return
		}
		const timestampReply, times = 14, 12
		switch {
		case packet.IsICMPError(payload[0]):
			payload[2], payload[3] = 0, 0
			normalize(payload[icmpHdrLen:])
		case payload[0] == timestampReply && len(payload) >= times+8:
			payload[2], payload[3] = 0, 0
			clear(payload[times : times+8])
		}
	}
}

// clearTimestamps takes the time of day out of a timestamp option, and the
// addresses with it, where there is one.
func clearTimestamps(p packet.IPv4) {
	const contents = 4
	options := p[packet.IPv4HdrLen:p.HdrLen()]
	for len(options) > 0 && options[0] != optEnd {
		n := 1
		if options[0] != optNop {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				return
			}
			n = int(options[1])
		}
		if options[0] == optTimestamp && n > contents {
			clear(options[contents:n])
			setChecksum(p, 0)
		}
		options = options[n:]
	}
}

// icmpHdrLen is the size of an ICMP header, in bytes (RFC 792).
const icmpHdrLen = 8

func isOwn(a [4]byte) bool { return slices.Contains(own, netip.AddrFrom4(a)) }

// same reports whether two devices did the same, in whatever order.
func same(a, b []output) bool {
	if len(a) != len(b) {
		return false
	}
	return slices.Equal(canonicals(a), canonicals(b))
}

func canonicals(outs []output) []string {
	var list []string
	for _, out := range outs {
		list = append(list, canonical(out))
	}
	slices.Sort(list)
	return list
}
