package encap

import "goipip/internal/packet"

// MaxICMPLen is the length of the longest ICMP error, in bytes (RFC 1812
// §4.3.2.3), IPv4 header included.
const MaxICMPLen = 576

// ICMPError writes an ICMP error about the packet inner to b, which has at least
// MaxICMPLen bytes, and returns it. inner may be cut short. mtu is that of the next
// hop, in bytes, for FragNeeded, and 0 otherwise. ICMPError returns nil if no error
// may be sent: about an ICMP error, about a fragment other than the first, and
// unless both addresses are unicast (G7; RFC 1122 §3.2.2).
//
// The source is the destination of inner: the one address that the local kernel
// is sure to route into the tunnel. One of this host's addresses would be a martian
// (fib_validate_source in net/ipv4/fib_frontend.c).
func ICMPError(b []byte, inner packet.IPv4, icmpType, code uint8, mtu int) packet.IPv4 {
	if !mayAnswer(inner) {
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

// icmpTOS returns the TOS of an error about a packet with the given one: precedence
// "internetwork control" (RFC 1812 §4.3.2.5), and the bits that __icmp_send in
// net/ipv4/icmp.c keeps.
func icmpTOS(tos uint8) uint8 { return 0xc0 | tos&0x1e }

// mayAnswer reports whether p has a whole header, and an ICMP error about it is
// permitted.
func mayAnswer(p packet.IPv4) bool {
	if !p.HasHeader() || p.HdrLen() > p.TotalLength() {
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

// unicast reports whether a may be the address of one other host.
func unicast(a [4]byte) bool {
	return a[0] != 0 && a[0] != 127 && a[0] < 224
}
