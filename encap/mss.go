package encap

import "goipip/internal/packet"

// ClampMSS lowers the MSS option of p to limit bytes if p is a TCP SYN, with or without ACK,
// that offers more. It leaves all other packets alone, also SYNs without the option, those
// whose headers or options are malformed, and fragments but the first. p has at least
// packet.IPv4HdrLen bytes.
//
// A SYN without the option gets none: that stands for 536 (RFC 9293 §3.7.1), and the packet
// would grow. Of netfilter's two, nft_exthdr does the same; xt_TCPMSS adds an option of at
// most 536.
//
// The checksum changes by the difference (RFC 1624). If it is partial, it is the sum of the
// pseudo-header, which has no part of the option, and stays.
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
