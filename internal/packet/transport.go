package packet

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
func (t TCP) Flags() uint8 { return t[13] }

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
func (t TCP) SetFlags(flags uint8) { t[13] = flags }

// SetChecksum sets the checksum.
func (t TCP) SetChecksum(sum uint16) { be.PutUint16(t[TCPCsumOffset:], sum) }

// Checksum returns the checksum as it stands.
func (t TCP) Checksum() uint16 { return be.Uint16(t[TCPCsumOffset:]) }

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
