package engine

import (
	"net/netip"
	"time"

	"goipip/rawsock"
)

// For tests of what has no clock that a test could set, and of more cases than a
// network could bring about.

type SoftErrors = softErrors

func (s *softErrors) Note(now time.Time)      { s.note(now) }
func (s *softErrors) Take(now time.Time) bool { return s.any.Load() && s.take(now) } // as transmit does
func (s *softErrors) Any() bool               { return s.any.Load() }

// Reported is what a tunnel remembers of a path's MTU.
type Reported struct{ r *reportedMTU }

// Path is what is known of a path without that.
type Path struct {
	MTU     int
	Locked  bool
	Device  int
	Gateway netip.Addr
}

func (p Path) underlay() underlay {
	return underlay{mtu: p.MTU, locked: p.Locked, device: p.Device, gateway: p.Gateway}
}

func (r *Reported) Report(mtu int, p Path, minimum int, expires time.Duration, now time.Time) {
	r.r = r.r.report(mtu, p.underlay(), limits{minimum, expires, now})
}

func (r *Reported) Limit(p Path, now time.Time) (mtu int, locked bool) {
	u := p.underlay()
	r.r.limit(&u, now)
	return u.mtu, u.locked
}

func IsSoftError(e rawsock.ICMPError, inheritTTL bool) bool { return isSoftError(e, inheritTTL) }

// Heard returns how many ICMP errors the tunnel has handled.
func (t *Tunnel) Heard() uint64 { return t.heard.Load() }
