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
	if len(b) >= 4 {
		sum, carry = bits.Add64(sum, uint64(ne.Uint32(b)), carry)
		b = b[4:]
	}
	if len(b) >= 2 {
		sum, carry = bits.Add64(sum, uint64(ne.Uint16(b)), carry)
		b = b[2:]
	}
	if len(b) > 0 {
		sum, carry = bits.Add64(sum, uint64(ne.Uint16([]byte{b[0], 0})), carry)
	}
	sum += carry // at most 2⁶⁴−1: a sum that carried is smaller than 2⁶⁴−1
	var folded [2]byte
	ne.PutUint16(folded[:], fold(sum))
	return AddSums(be.Uint16(folded[:]), initial)
}

// fold reduces a one's complement sum to 16 bits.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// AddSums returns the one's complement sum of two words.
func AddSums(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum + sum>>16)
}

// PseudoHeaderSum returns the folded one's complement sum of the pseudo-header
// that the TCP or UDP checksum of the unfragmented packet p covers (RFC 9293
// §3.1, RFC 768). A sender that leaves the checksum to somebody further on has
// just this in the checksum field.
func PseudoHeaderSum(p IPv4) uint16 {
	return AddSums(AddressSum(p), uint16(p.TotalLength()-p.HdrLen()))
}

// AddressSum returns the part of PseudoHeaderSum that is the same for all packets
// of a flow, without the length.
func AddressSum(p IPv4) uint16 { return Sum(p[12:20], uint16(p.Protocol())) }

// PatchChecksum returns the checksum after one 16-bit word that it covers
// changed (RFC 1624, equation 3).
func PatchChecksum(checksum, before, after uint16) uint16 {
	return ^AddSums(AddSums(^checksum, ^before), after)
}

// FinishChecksum does what h asks for with NeedsCsum: it replaces the partial sum
// that stands h.CsumOffset bytes into b[h.CsumStart:] by the checksum of all of
// b[h.CsumStart:]. A UDP checksum that comes out as zero becomes 0xffff (RFC 768),
// which TCP counts as the same. It reports false, and leaves b alone, when the
// field does not lie within b.
func FinishChecksum(b []byte, h VNetHdr) bool {
	start, offset := int(h.CsumStart), int(h.CsumOffset)
	if start+offset+2 > len(b) {
		return false
	}
	covered := b[start:]
	sum := ^Sum(covered, 0)
	if sum == 0 {
		sum = 0xffff
	}
	be.PutUint16(covered[offset:], sum)
	return true
}
