package packet

import (
	"encoding/binary"
	"math/bits"
)

// Sum returns the folded one's complement sum of initial and of b's 16-bit
// big-endian words, an odd last byte padded with a zero (RFC 1071). It is not
// inverted: the Internet checksum of b is ^Sum(b, 0), and b with its checksum
// in place sums to 0xffff.
//
// The sum does not depend on the byte order it is computed in (RFC 1071 §2.B):
// the words are added as the machine loads them, eight bytes at a time, and
// only the result is swapped.
func Sum(b []byte, initial uint16) uint16 {
	ne := binary.NativeEndian
	var sum, carry uint64
	for len(b) >= 64 {
		sum, carry = bits.Add64(sum, ne.Uint64(b), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[24:]), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[32:]), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[40:]), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[48:]), carry)
		sum, carry = bits.Add64(sum, ne.Uint64(b[56:]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, ne.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var tail [8]byte
		copy(tail[:], b)
		sum, carry = bits.Add64(sum, ne.Uint64(tail[:]), carry)
	}
	sum, carry = bits.Add64(sum, 0, carry)
	sum += carry
	var folded [2]byte
	ne.PutUint16(folded[:], fold(sum))
	return add(be.Uint16(folded[:]), initial)
}

// fold reduces a one's complement sum to 16 bits.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// add is the one's complement sum of two words.
func add(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum + sum>>16)
}

// PseudoHeaderSum returns the folded one's complement sum of the pseudo-header
// that the TCP or UDP checksum of the unfragmented packet p covers (RFC 9293
// §3.1, RFC 768). A sender that leaves the checksum to somebody further on has
// just this in the checksum field.
func PseudoHeaderSum(p IPv4) uint16 {
	addresses := Sum(p[12:20], uint16(p.Protocol()))
	return add(addresses, uint16(p.TotalLength()-p.HdrLen()))
}

// PatchChecksum returns the checksum after one 16-bit word that it covers
// changed from old to new (RFC 1624, equation 3).
func PatchChecksum(checksum, old, new uint16) uint16 {
	return ^add(add(^checksum, ^old), new)
}

// FinishChecksum replaces the partial sum that stands csumOffset bytes into
// b[csumStart:] by the checksum of all of b[csumStart:], as the virtio-net flag
// NEEDS_CSUM asks for. A UDP checksum that comes out as zero becomes 0xffff
// (RFC 768), which TCP counts as the same. It reports false, and leaves b alone,
// when the field does not lie within b.
func FinishChecksum(b []byte, csumStart, csumOffset int) bool {
	if csumStart+csumOffset+2 > len(b) {
		return false
	}
	covered := b[csumStart:]
	sum := ^Sum(covered, 0)
	if sum == 0 {
		sum = 0xffff
	}
	be.PutUint16(covered[csumOffset:], sum)
	return true
}
