package encap

import "goipip/internal/stats"

// ECN is the low two bits of the TOS field (RFC 3168 §5).
const (
	ecnMask = 0x03
	ecnNot  = 0x00 // Not-ECT
	ecnECT1 = 0x01
	ecnECT0 = 0x02
	ecnCE   = 0x03
)

// encapECN returns the outer TOS: the DSCP of tos and the inner ECN bits, with CE
// replaced by ECT(0) (T9), as in Linux (INET_ECN_encapsulate in
// include/net/inet_ecn.h). RFC 6040's normal mode would copy CE.
func encapECN(tos, inner uint8) uint8 {
	ecn := inner & ecnMask
	if ecn == ecnCE {
		ecn = ecnECT0
	}
	return tos&^ecnMask | ecn
}

// decapECN returns the inner TOS after decapsulation, and the fate of the packet.
// If the inner packet is Not-ECT, outer CE drops it, as its sender understands no
// mark, and outer ECT is logged (R5; RFC 6040 §4.2, INET_ECN_decapsulate).
func decapECN(outer, inner uint8) (tos uint8, why stats.Reason) {
	switch out, in := outer&ecnMask, inner&ecnMask; {
	case in == ecnNot && out == ecnCE:
		return inner, stats.BadECN
	case in == ecnNot && out != ecnNot:
		return inner, stats.DeliverNonECT
	case in == ecnNot:
		return inner, stats.Deliver
	case out == ecnCE:
		return inner | ecnCE, stats.Deliver
	case out == ecnECT1 && in == ecnECT0:
		return inner&^ecnMask | ecnECT1, stats.Deliver
	}
	return inner, stats.Deliver
}
