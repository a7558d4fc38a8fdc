package oracle_test

import (
	"slices"

	"goipip/internal/packet"
)

// headerWords is how far an output is searched for tags at first, in words: it
// holds all headers that can come before an inner packet's addresses, and a bit of
// payload.
const headerWords = 40

// tagOf returns the tag that a word has, or 0.
func tagOf(w uint32) uint16 {
	switch w >> 16 {
	case 10<<8 | 1, 10<<8 | 2:
		if tag := uint16(w); tag >= firstSentinelTag {
			return tag
		}
	case cookie:
		return uint16(w)
	}
	return 0
}

// word returns word i of p. All addresses and payloads begin at one.
func word(p []byte, i int) uint32 {
	p = p[4*i:]
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}

// Words of an IPv4 header with an address.
const (
	sourceWord      = 3
	destinationWord = 4
)

// owners says which input of a window an output belongs to.
type owners struct {
	tags  map[uint16]int
	words map[uint32]int // inner addresses, for an input that has lost its tags
}

// ambiguous marks a word that more than one input has.
const ambiguous = -1

func ownersOf(inputs []input) owners {
	o := owners{map[uint16]int{}, map[uint32]int{}}
	for i := range inputs {
		o.tags[inputs[i].tag] = i
		p := inputs[i].inner()
		if len(p) < packet.IPv4HdrLen {
			continue
		}
		for _, w := range []uint32{word(p, sourceWord), word(p, destinationWord)} {
			if owner, taken := o.words[w]; taken && owner != i {
				o.words[w] = ambiguous
			} else {
				o.words[w] = i
			}
		}
	}
	for _, a := range everywhere {
		o.words[word(a.AsSlice(), 0)] = ambiguous
	}
	return o
}

// everywhere are addresses that say nothing about an input.
var everywhere = append(slices.Clone(own), gatewayAddr, detourAddr, remoteAddr)

// attribute returns the input that an output belongs to, or −1 and the tag of a
// packet that is no input of this window, or 0.
func (o owners) attribute(frame []byte) (tag uint16, owner int) {
	p := ipOf(frame)
	tag = mostFrequentTag(p)
	if i, ok := o.tags[tag]; ok {
		return tag, i
	}
	if isSentinel(tag) {
		return tag, -1
	}
	for i := range len(p) / 4 {
		if owner, ok := o.words[word(p, i)]; ok && owner != ambiguous {
			return tag, owner
		}
	}
	return tag, -1
}

// mostFrequentTag returns the tag that a packet has most often, or 0. One in a
// changed address may be another's.
func mostFrequentTag(p packet.IPv4) (best uint16) {
	var seen [headerWords]uint16
	n, most := 0, 0
	for i := range len(p) / 4 {
		if i >= headerWords && most > 0 {
			break
		}
		tag := tagOf(word(p, i))
		if tag == 0 || n == len(seen) {
			continue
		}
		seen[n] = tag
		n++
		count := 0
		for _, other := range seen[:n] {
			if other == tag {
				count++
			}
		}
		if count > most {
			best, most = tag, count
		}
	}
	return best
}
