// Package packet gives names to the bytes of the headers that goipip meets,
// and computes their checksums. It is the only place with byte offsets.
//
// A header view such as [IPv4] is the packet's own memory under another type:
// it copies nothing, and is valid as long as the slice it was made from. The
// accessors do not check lengths; what comes from outside goes through the
// type's Valid method first.
package packet

import "encoding/binary"

// IP protocol numbers (IANA) that goipip looks into.
const (
	ProtoICMP = 1
	ProtoIPIP = 4 // IPv4 in IPv4, RFC 2003
	ProtoTCP  = 6
	ProtoUDP  = 17
)

var be = binary.BigEndian

// NetworkOrder returns n with its bytes as in a header, which some fields of system calls have
// (htons(3)).
func NetworkOrder(n uint16) uint16 {
	var b [2]byte
	be.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}
