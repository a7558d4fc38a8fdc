package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// softErrorTime is how long an ICMP error about the tunnel counts
// (IPTUNNEL_ERR_TIMEO in include/net/ip_tunnels.h).
const softErrorTime = 30 * time.Second

// softErrors is the soft error state of a tunnel (T8): ICMP errors about its
// packets, of which as many later senders shall hear.
type softErrors struct {
	any     atomic.Bool // count is not 0: the one thing that loops look at
	changed func(any bool)

	mu    sync.Mutex
	count int
	last  time.Time
}

// setAny needs mu.
func (s *softErrors) setAny(any bool) {
	if s.any.Swap(any) != any {
		s.changed(any)
	}
}

// tell has the Owner hear how things stand.
func (s *softErrors) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed(s.any.Load())
}

// note counts one error.
func (s *softErrors) note(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.last) >= softErrorTime {
		s.count = 0
	}
	s.count++
	s.last = now
	s.setAny(true)
}

// take reports whether the sender of the next packet is to hear of an error.
func (s *softErrors) take(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := s.count > 0 && now.Sub(s.last) < softErrorTime
	if told {
		s.count--
	} else {
		s.count = 0
	}
	s.setAny(s.count > 0)
	return told
}

// left returns how many senders are still to hear of an error.
func (s *softErrors) left(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.last) >= softErrorTime {
		return 0
	}
	return s.count
}

// isSoftError reports whether e is one (E; ipip_err in net/ipv4/ipip.c). A TTL
// that ran out is the business of the inner sender where it is the inner TTL.
func isSoftError(e rawsock.ICMPError, inheritTTL bool) bool {
	switch e.Type {
	case packet.ICMPUnreachable:
		return e.Code != packet.ICMPCodeFragNeeded && e.Code != packet.ICMPCodeSrcRoute
	case packet.ICMPTimeExceeded:
		return e.Code == packet.ICMPCodeTTL && !inheritTTL
	}
	return false
}
