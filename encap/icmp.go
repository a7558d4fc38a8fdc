package encap

import "goipip/internal/packet"

// MaxICMPLen is the length of the longest ICMP error, in bytes (RFC 1812
// §4.3.2.3).
const MaxICMPLen = 576

// ICMPError writes to b, which has room for MaxICMPLen bytes, the ICMP error of a
// type, code and next hop's MTU (0 but for FragNeeded) about the packet inner, of
// which only the start need be there, and returns it. It returns nothing where
// there must be no message: about an ICMP error, a later fragment, or what was not
// sent from one host to one other (G7; RFC 1122 §3.2.2).
//
// Its source is the destination of inner. To the local kernel that is the one
// address that certainly lies behind the tunnel; an own one would be a martian
// (fib_validate_source in net/ipv4/fib_frontend.c).
func ICMPError(b []byte, inner packet.IPv4, icmpType, code uint8, mtu int) packet.IPv4 {
	if !deservesICMP(inner) {
		return nil
	}
	ip := packet.IPv4(b[:MaxICMPLen])
	ip.InitHeader()
	message := packet.ICMP(ip[packet.IPv4HdrLen:])
	n := copy(message[packet.ICMPHdrLen:], inner[:min(inner.TotalLength(), len(inner))])
	message = message[:packet.ICMPHdrLen+n]
	message.InitError(icmpType, code, mtu)

	ip = ip[:packet.IPv4HdrLen+len(message)]
	ip.SetTotalLength(len(ip))
	ip.SetTOS(icmpTOS(inner.TOS()))
	ip.SetTTL(64)
	ip.SetProtocol(packet.ProtoICMP)
	ip.SetSource(inner.Destination())
	ip.SetDestination(inner.Source())
	ip.UpdateChecksum()
	return ip
}

// icmpTOS is the precedence "internetwork control" (RFC 1812 §4.3.2.5), and
// otherwise what __icmp_send in net/ipv4/icmp.c keeps of the packet's TOS.
func icmpTOS(tos uint8) uint8 { return 0xc0 | tos&0x1e }

// deservesICMP reports whether p has a whole header, and may be answered.
func deservesICMP(p packet.IPv4) bool {
	if len(p) < packet.IPv4HdrLen || p.Version() != 4 || p.HdrLen() < packet.IPv4HdrLen ||
		p.HdrLen() > min(p.TotalLength(), len(p)) {
		return false
	}
	if p.FragmentOffset() != 0 || !unicast(p.Source()) || !unicast(p.Destination()) {
		return false
	}
	if p.Protocol() != packet.ProtoICMP {
		return true
	}
	m := packet.ICMP(p[p.HdrLen():])
	return len(m) > 0 && !packet.IsICMPError(m.Type())
}

// unicast reports whether a is the address of one host on some network.
func unicast(a [4]byte) bool {
	return a[0] != 0 && a[0] != 127 && a[0] < 224
}
