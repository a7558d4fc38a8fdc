package packet

import "math/bits"

// Sizes of transport headers, in bytes.
const (
	TCPHdrLen    = 20 // without options, RFC 9293
	TCPMaxHdrLen = 60
	UDPHdrLen    = 8 // RFC 768
)

// Offsets of the checksum field within the transport header, in bytes.
const (
	TCPCsumOffset = 16
	UDPCsumOffset = 6
)

// tcpFlagsOffset is that of the flags within the TCP header, in bytes.
const tcpFlagsOffset = 13

// Kinds of TCP options (RFC 9293 §3.2), and the length of the one for the MSS, in bytes.
const (
	tcpOptionEnd  = 0
	tcpOptionNoOp = 1
	tcpOptionMSS  = 2

	tcpOptionMSSLen = 4
)

// Flags of a TCP header (RFC 9293 §3.1).
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// TCP is a segment seen from its TCP header on (RFC 9293 §3.1).
type TCP []byte

// Valid reports whether the segment holds a whole header, options included.
func (t TCP) Valid() bool {
	return len(t) >= TCPHdrLen && t.HdrLen() >= TCPHdrLen && t.HdrLen() <= len(t)
}

// HdrLen returns the length of the header with its options, in bytes.
func (t TCP) HdrLen() int { return int(t[12]>>4) * 4 }

// Ports returns the source and the destination port, as one number to compare.
func (t TCP) Ports() uint32 { return be.Uint32(t) }

// Seq returns the sequence number of the first byte of payload.
func (t TCP) Seq() uint32 { return be.Uint32(t[4:]) }

// SetSeq sets the sequence number.
func (t TCP) SetSeq(seq uint32) { be.PutUint32(t[4:], seq) }

// Flags returns the flags, TCPFin and so on.
func (t TCP) Flags() uint8 { return t[tcpFlagsOffset] }

// Reserved returns the four bits before the flags, of which Accurate ECN uses one
// (draft-ietf-tcpm-accurate-ecn).
func (t TCP) Reserved() uint8 { return t[12] & 0x0f }

// AckAndWindow returns the acknowledgement number and the window, as one number to
// compare.
func (t TCP) AckAndWindow() uint64 { return uint64(be.Uint32(t[8:]))<<16 | uint64(be.Uint16(t[14:])) }

// Urgent returns the urgent pointer.
func (t TCP) Urgent() uint16 { return be.Uint16(t[18:]) }

// Options returns the options of a valid header.
func (t TCP) Options() []byte { return t[TCPHdrLen:t.HdrLen()] }

// SetFlags sets the flags.
func (t TCP) SetFlags(flags uint8) { t[tcpFlagsOffset] = flags }

// SetChecksum sets the checksum.
func (t TCP) SetChecksum(sum uint16) { be.PutUint16(t[TCPCsumOffset:], sum) }

// Checksum returns the checksum as it stands.
func (t TCP) Checksum() uint16 { return be.Uint16(t[TCPCsumOffset:]) }

// MSS returns the value of the first MSS option of a valid header, in bytes, and where it
// stands in t. The place is 0 if there is none, or if what is in front of it does not follow
// the form of options.
func (t TCP) MSS() (mss uint16, at int) {
	for at = TCPHdrLen; at+tcpOptionMSSLen <= t.HdrLen(); {
		kind, length := t[at], int(t[at+1])
		switch {
		case kind == tcpOptionEnd:
			return 0, 0
		case kind == tcpOptionNoOp:
			length = 1
		case length < 2 || kind == tcpOptionMSS && length != tcpOptionMSSLen:
			return 0, 0
		case kind == tcpOptionMSS:
			return be.Uint16(t[at+2:]), at + 2
		}
		at += length
	}
	return 0, 0
}

// SetMSS sets the value that MSS found at a place, and leaves the checksum alone.
func (t TCP) SetMSS(at int, mss uint16) { be.PutUint16(t[at:], mss) }

// PatchChecksum patches the checksum by the difference between two values of a 16-bit word
// that stands at a place in t, so that a wrong checksum stays wrong (RFC 1624). From an odd
// place on, the bytes are in the other halves of two words of the sum.
func (t TCP) PatchChecksum(at int, before, after uint16) {
	if at%2 != 0 {
		before, after = bits.ReverseBytes16(before), bits.ReverseBytes16(after)
	}
	t.SetChecksum(PatchChecksum(t.Checksum(), before, after))
}

// UDP is a datagram seen from its UDP header on (RFC 768).
type UDP []byte

// Valid reports whether the datagram holds a whole header.
func (u UDP) Valid() bool { return len(u) >= UDPHdrLen }

// Ports returns the source and the destination port, as one number to compare.
func (u UDP) Ports() uint32 { return be.Uint32(u) }

// Length returns the length of header and payload, in bytes.
func (u UDP) Length() int { return int(be.Uint16(u[4:])) }

// Checksum returns the checksum as it stands; zero means that there is none.
func (u UDP) Checksum() uint16 { return be.Uint16(u[UDPCsumOffset:]) }

// SetChecksum sets the checksum. A sum that comes out as 0 is sent as 0xffff.
func (u UDP) SetChecksum(sum uint16) { be.PutUint16(u[UDPCsumOffset:], sum) }

// SetLength sets the length of header and payload, in bytes.
func (u UDP) SetLength(n int) { be.PutUint16(u[4:], uint16(n)) }
