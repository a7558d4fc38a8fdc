package packet

// Sizes of an IPv4 header, in bytes (RFC 791 §3.1).
const (
	IPv4HdrLen    = 20 // without options
	IPv4MaxHdrLen = 60
	IPv4MaxLen    = 65535 // a whole packet
)

// IPv4 is a packet seen from its IPv4 header on (RFC 791 §3.1).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version|  IHL  |      TOS      |          Total Length         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Identification        |Flags|     Fragment Offset     |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Time to Live |    Protocol   |        Header Checksum        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                         Source Address                        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                      Destination Address                      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type IPv4 []byte

// Valid reports whether the packet holds a whole version 4 header, options
// included, and a total length that covers the header and fits the packet. The
// header checksum is not looked at.
func (p IPv4) Valid() bool {
	if len(p) < IPv4HdrLen || p.Version() != 4 {
		return false
	}
	hdrLen, total := p.HdrLen(), p.TotalLength()
	return hdrLen >= IPv4HdrLen && hdrLen <= total && total <= len(p)
}

// HasHeader reports whether the packet holds a whole version 4 header, options included,
// whatever its total length is, as in the quote of an ICMP error.
func (p IPv4) HasHeader() bool {
	return len(p) >= IPv4HdrLen && p.Version() == 4 && p.HdrLen() >= IPv4HdrLen && p.HdrLen() <= len(p)
}

// Version returns the IP version, 4 in a valid header.
func (p IPv4) Version() int { return int(p[0] >> 4) }

// HdrLen returns the length of the header with its options, in bytes.
func (p IPv4) HdrLen() int { return int(p[0]&0x0f) * 4 }

// TOS returns the type of service: DSCP in the high six bits, ECN in the low
// two (RFC 2474, RFC 3168).
func (p IPv4) TOS() uint8 { return p[1] }

// TotalLength returns the length of header and payload, in bytes.
func (p IPv4) TotalLength() int { return int(be.Uint16(p[2:])) }

// ID returns the identification that fragments of one packet share.
func (p IPv4) ID() uint16 { return be.Uint16(p[4:]) }

// DF reports the Don't Fragment flag.
func (p IPv4) DF() bool { return p[6]&flagDF != 0 }

// MF reports the More Fragments flag.
func (p IPv4) MF() bool { return p[6]&flagMF != 0 }

// Reserved reports the flag beside DF and MF that has no meaning.
func (p IPv4) Reserved() bool { return p[6]&flagReserved != 0 }

// FragmentOffset returns the place of this payload in the unfragmented one, in
// bytes.
func (p IPv4) FragmentOffset() int { return int(be.Uint16(p[6:])&0x1fff) * 8 }

// IsFragment reports whether the packet is part of a larger one.
func (p IPv4) IsFragment() bool { return be.Uint16(p[6:])&0x3fff != 0 }

// TTL returns the time to live, in hops.
func (p IPv4) TTL() uint8 { return p[8] }

// Protocol returns the number of the protocol in the payload.
func (p IPv4) Protocol() uint8 { return p[9] }

// HasSYN reports whether the packet, of at least IPv4HdrLen bytes, carries TCP, and SYN is set
// where an unfragmented packet has its flags. It checks nothing else.
func (p IPv4) HasSYN() bool {
	at := p.HdrLen() + tcpFlagsOffset
	return p.Protocol() == ProtoTCP && at < len(p) && p[at]&TCPSyn != 0
}

// Checksum returns the header checksum as it stands.
func (p IPv4) Checksum() uint16 { return be.Uint16(p[10:]) }

// Source returns the source address.
func (p IPv4) Source() [4]byte { return [4]byte(p[12:16]) }

// Destination returns the destination address.
func (p IPv4) Destination() [4]byte { return [4]byte(p[16:20]) }

// Addresses returns the source and the destination address, as one number to compare.
func (p IPv4) Addresses() uint64 { return be.Uint64(p[12:]) }

// Payload returns what follows the header up to the total length, of a valid
// packet.
func (p IPv4) Payload() []byte { return p[p.HdrLen():p.TotalLength()] }

// Flag bits within byte 6.
const (
	flagReserved = 0x80
	flagDF       = 0x40
	flagMF       = 0x20
)

// InitHeader makes p[:20] a header without options: version 4, IHL 5, every
// other field zero.
func (p IPv4) InitHeader() {
	clear(p[:IPv4HdrLen])
	p[0] = 4<<4 | IPv4HdrLen/4
}

// SetTOS sets the type of service.
func (p IPv4) SetTOS(tos uint8) { p[1] = tos }

// SetTotalLength sets the length of header and payload, 20 … 65535 bytes.
func (p IPv4) SetTotalLength(n int) { be.PutUint16(p[2:], uint16(n)) }

// SetID sets the identification.
func (p IPv4) SetID(id uint16) { be.PutUint16(p[4:], id) }

// SetDF sets or clears the Don't Fragment flag, and leaves the rest of the
// fragment field alone.
func (p IPv4) SetDF(df bool) {
	p[6] &^= flagDF
	if df {
		p[6] |= flagDF
	}
}

// SetFragment places the payload at offset bytes, a multiple of 8, of the
// unfragmented one, tells by mf whether more follows, and leaves DF alone.
func (p IPv4) SetFragment(offset int, mf bool) {
	field := uint16(offset / 8)
	if mf {
		field |= flagMF << 8
	}
	be.PutUint16(p[6:], field|be.Uint16(p[6:])&(flagDF<<8))
}

// SetTTL sets the time to live, in hops.
func (p IPv4) SetTTL(ttl uint8) { p[8] = ttl }

// SetProtocol sets the number of the protocol in the payload.
func (p IPv4) SetProtocol(proto uint8) { p[9] = proto }

// SetSource sets the source address.
func (p IPv4) SetSource(a [4]byte) { *(*[4]byte)(p[12:]) = a }

// SetDestination sets the destination address.
func (p IPv4) SetDestination(a [4]byte) { *(*[4]byte)(p[16:]) = a }

// Option types (RFC 791 §3.1).
const (
	optionEnd    = 0
	optionNoOp   = 1
	optionCopied = 0x80 // bit of those that every fragment carries
)

// DropUncopiedOptions replaces by no-operations the options of a valid header that
// only the first fragment carries. What does not follow the form of options ends
// it (ip_options_fragment in net/ipv4/ip_options.c).
func (p IPv4) DropUncopiedOptions() {
	options := p[IPv4HdrLen:p.HdrLen()]
	for len(options) > 0 && options[0] != optionEnd {
		if options[0] == optionNoOp {
			options = options[1:]
			continue
		}
		if len(options) < 2 {
			return
		}
		n := int(options[1])
		if n < 2 || n > len(options) {
			return
		}
		if options[0]&optionCopied == 0 {
			for i := range n {
				options[i] = optionNoOp
			}
		}
		options = options[n:]
	}
}

// UpdateChecksum computes the header checksum anew, over the options too.
func (p IPv4) UpdateChecksum() {
	be.PutUint16(p[10:], 0)
	be.PutUint16(p[10:], ^Sum(p[:p.HdrLen()], 0))
}

// RewriteTOS sets the type of service and patches the header checksum by the
// difference, so that a wrong checksum stays wrong (RFC 1624).
func (p IPv4) RewriteTOS(tos uint8) {
	old := be.Uint16(p)
	p[1] = tos
	be.PutUint16(p[10:], PatchChecksum(p.Checksum(), old, be.Uint16(p)))
}
