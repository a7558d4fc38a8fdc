package underlay

import (
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// Reported is what a Following remembers of a path's MTU, for tests of what has no
// clock that a test could set.
type Reported struct{ r *reportedMTU }

func (r *Reported) Report(mtu int, p Path, minimum int, expires time.Duration, now time.Time) {
	r.r = r.r.report(mtu, p, limits{minimum, expires, now})
}

func (r *Reported) Limit(p Path, now time.Time) (mtu int, locked bool) {
	r.r.limit(&p, now)
	return p.MTU, p.Locked
}

// Requests returns how many requests of rtnetlink(7) the Watcher has made.
func (w *Watcher) Requests() int {
	return int(atomic.LoadUint32(&w.kernel.requests[syscall.NETLINK_ROUTE].Seq))
}

// EventSocket is the one that the Watcher learns of routes by.
func (w *Watcher) EventSocket() *nl.NetlinkSocket { return w.kernel.routes }

// Own returns this host's addresses as the Watcher knows them.
func (w *Watcher) Own() []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addresses.own
}

// Limits on lookups.
const (
	LookupsPerSecond = lookupsPerSecond
	LookupsBurst     = lookupsBurst
)

// Indexed returns how many entries the index of Followings has.
func (w *Watcher) Indexed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.followings
	return len(s.byRemote) + len(s.byLocal) + len(s.byOwnLink) + len(s.byName) + len(s.byLink) + len(s.byNeighbour) +
		len(s.unreachable) + len(s.foreign) + len(s.lookups)
}

// StopReading has the Watcher publish only what events tell, until resume is called.
func (w *Watcher) StopReading() (resume func()) {
	w.reading.Lock()
	return w.reading.Unlock
}

// IsPacketSocketsFile reports whether parsePacketSockets can read a file.
func IsPacketSocketsFile(file string) bool { return parsePacketSockets(file).unknown == "" }
