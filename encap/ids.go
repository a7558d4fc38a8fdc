package encap

import (
	"math/rand/v2"
	"sync/atomic"
)

// IDs is the sequence of outer IDs to one peer (RFC 6864). It outlives the
// peer's Encapsulators, so that a change of configuration repeats no ID. It is safe
// for concurrent use.
type IDs struct {
	last atomic.Uint64
	_    [56]byte // a cache line each: workers send to different peers at once
}

// NewIDs returns a sequence that starts at a random ID, so that a restart does not
// repeat the IDs used last.
func NewIDs() *IDs {
	s := &IDs{}
	s.last.Store(uint64(rand.Uint32()))
	return s
}

// next returns an ID that is not among the last 65534. It is never 0, for which
// the kernel would choose an ID of its own (raw(7)).
func (s *IDs) next() uint16 {
	return uint16(s.last.Add(1)%0xffff) + 1
}
