package packet

// Sizes of transport headers, in bytes.
const (
	TCPHdrLen = 20 // without options, RFC 9293
	UDPHdrLen = 8  // RFC 768
)

// Offsets of the checksum field within the transport header, in bytes.
const (
	TCPCsumOffset = 16
	UDPCsumOffset = 6
)

// TCP is a segment seen from its TCP header on (RFC 9293 §3.1).
type TCP []byte

// Valid reports whether the segment holds a whole header, options included.
func (t TCP) Valid() bool {
	return len(t) >= TCPHdrLen && t.HdrLen() >= TCPHdrLen && t.HdrLen() <= len(t)
}

// HdrLen returns the length of the header with its options, in bytes.
func (t TCP) HdrLen() int { return int(t[12]>>4) * 4 }

// Checksum returns the checksum as it stands.
func (t TCP) Checksum() uint16 { return be.Uint16(t[TCPCsumOffset:]) }

// UDP is a datagram seen from its UDP header on (RFC 768).
type UDP []byte

// Valid reports whether the datagram holds a whole header.
func (u UDP) Valid() bool { return len(u) >= UDPHdrLen }

// Checksum returns the checksum as it stands; zero means that there is none.
func (u UDP) Checksum() uint16 { return be.Uint16(u[UDPCsumOffset:]) }
