package encap

import (
	"net/netip"
	"sync/atomic"
)

// Host is what this host's encapsulators and decapsulators share: its addresses. The
// zero value and nil have none. It is safe for concurrent use.
type Host struct {
	addrs atomic.Pointer[map[[4]byte]struct{}]
}

// Set replaces the addresses; those that are not IPv4 are ignored.
func (h *Host) Set(addrs []netip.Addr) {
	set := make(map[[4]byte]struct{}, len(addrs))
	for _, a := range addrs {
		if a.Is4() {
			set[a.As4()] = struct{}{}
		}
	}
	h.addrs.Store(&set)
}

func (h *Host) has(a [4]byte) bool {
	if h == nil {
		return false
	}
	set := h.addrs.Load()
	if set == nil {
		return false
	}
	_, ok := (*set)[a]
	return ok
}
