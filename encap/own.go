package encap

import (
	"net/netip"
	"sync/atomic"
)

// ownAddrs are the addresses of this host. The zero value has none.
type ownAddrs struct {
	set atomic.Pointer[map[[4]byte]struct{}]
}

// SetOwn tells the addresses of this host; those that are not IPv4 do not matter.
// Packets at the same time meet the old set or the new one.
func (o *ownAddrs) SetOwn(addrs []netip.Addr) {
	own := make(map[[4]byte]struct{}, len(addrs))
	for _, a := range addrs {
		if a.Is4() {
			own[a.As4()] = struct{}{}
		}
	}
	o.set.Store(&own)
}

func (o *ownAddrs) isOwn(a [4]byte) bool {
	set := o.set.Load()
	if set == nil {
		return false
	}
	_, own := (*set)[a]
	return own
}
