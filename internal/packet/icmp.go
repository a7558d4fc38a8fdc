package packet

// ICMPHdrLen is the size of the ICMP header of an error message, in bytes
// (RFC 792).
const ICMPHdrLen = 8

// ICMP types of echo messages (RFC 792).
const (
	ICMPEchoReply = 0
	ICMPEcho      = 8
)

// ICMP types of errors (RFC 792).
const (
	ICMPUnreachable   = 3 // a destination
	ICMPSourceQuench  = 4
	ICMPRedirect      = 5
	ICMPTimeExceeded  = 11
	ICMPParameterProb = 12
)

// Codes of ICMPUnreachable (RFC 792).
const (
	ICMPCodeNet        = 0
	ICMPCodeHost       = 1
	ICMPCodePort       = 3
	ICMPCodeFragNeeded = 4 // longer than the next hop's MTU, and DF is set
	ICMPCodeSrcRoute   = 5 // source route failed
)

// Codes of ICMPTimeExceeded (RFC 792).
const (
	ICMPCodeTTL        = 0 // ran out in transit
	ICMPCodeReassembly = 1 // fragments are missing
)

// ICMP is a message seen from its ICMP header on (RFC 792).
type ICMP []byte

// Valid reports whether the message holds a whole header, and sums up with its checksum.
func (m ICMP) Valid() bool { return len(m) >= ICMPHdrLen && Sum(m, 0) == 0xffff }

// Type returns the type of the message.
func (m ICMP) Type() uint8 { return m[0] }

// Code returns what the type leaves open.
func (m ICMP) Code() uint8 { return m[1] }

// MTU returns that of the next hop, in bytes, of a valid error with ICMPCodeFragNeeded
// (RFC 1191 §4). It is 0 from routers before that RFC.
func (m ICMP) MTU() int { return int(be.Uint16(m[6:])) }

// Quote returns the start of the packet that a valid error is about, as much as the
// message has, which may be nothing.
func (m ICMP) Quote() IPv4 { return IPv4(m[ICMPHdrLen:]) }

// ID returns the identifier of an echo message.
func (m ICMP) ID() uint16 { return be.Uint16(m[4:]) }

// Data returns what an echo message has behind its header.
func (m ICMP) Data() []byte { return m[ICMPHdrLen:] }

// InitEcho makes m an echo message whose data stands in m[ICMPHdrLen:] already.
func (m ICMP) InitEcho(icmpType uint8, id, sequence uint16) {
	clear(m[:ICMPHdrLen])
	m[0] = icmpType
	be.PutUint16(m[4:], id)
	be.PutUint16(m[6:], sequence)
	be.PutUint16(m[2:], ^Sum(m, 0))
}

// IsICMPError reports whether messages of this type are about another packet, so
// that none may be sent about them (RFC 1122 §3.2.2). Types that no RFC has
// defined count among them, as in __icmp_send in net/ipv4/icmp.c.
func IsICMPError(icmpType uint8) bool {
	switch icmpType {
	case 0, 8, 13, 14, 15, 16, 17, 18: // echo, timestamp, information, address mask
		return false
	}
	return true
}

// InitError makes m an error message whose quotation stands in m[ICMPHdrLen:]
// already. mtu is that of the next hop, in bytes, for FragNeeded (RFC 1191), and 0
// otherwise.
func (m ICMP) InitError(icmpType, code uint8, mtu int) {
	clear(m[:ICMPHdrLen])
	m[0], m[1] = icmpType, code
	be.PutUint16(m[6:], uint16(mtu))
	be.PutUint16(m[2:], ^Sum(m, 0))
}
