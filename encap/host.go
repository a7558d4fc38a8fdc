package encap

import (
	"net/netip"
	"sync/atomic"
)

// Host holds the addresses of this host, for all tunnels. The zero value has
// none. It is safe for concurrent use.
type Host struct {
	addrs atomic.Pointer[map[[4]byte]struct{}] // the map is never written
}

// Set replaces the addresses, all at once. Those that are not IPv4 are ignored.
func (h *Host) Set(addrs []netip.Addr) {
	set := make(map[[4]byte]struct{}, len(addrs))
	for _, a := range addrs {
		if a.Is4() {
			set[a.As4()] = struct{}{}
		}
	}
	h.addrs.Store(&set)
}

// has reports whether a is an address of this host. A nil Host has none.
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
