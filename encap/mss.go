package encap

import "goipip/internal/packet"

// ClampMSS lowers the MSS option of the packet p to limit bytes, if p is a TCP segment with
// SYN that has the option, and offers more. Options of IP or TCP that do not follow their
// form, and fragments but the first, stay as they are. p has at least packet.IPv4HdrLen bytes.
//
// A segment without the option gets none. Its absence means 536 (RFC 9293 §3.7.1), which is
// less than a limit as a rule; and there is no room for more bytes. (Linux has it both ways:
// xt_TCPMSS adds an option of at most 536, nft_exthdr adds none.)
//
// The checksum changes by the difference. With partial, it is the pseudo-header's sum alone,
// of which the option is no part.
func ClampMSS(p packet.IPv4, limit uint16, partial bool) {
	if !p.Valid() || p.Protocol() != packet.ProtoTCP || p.FragmentOffset() != 0 {
		return
	}
	tcp := packet.TCP(p.Payload())
	if !tcp.Valid() || tcp.Flags()&packet.TCPSyn == 0 {
		return
	}
	mss, at := tcp.MSS()
	if at == 0 || mss <= limit {
		return
	}
	tcp.SetMSS(at, limit)
	if !partial {
		tcp.PatchChecksum(at, mss, limit)
	}
}
