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

// Claim is a claim on a name below a directory that a test brings.
type Claim struct{ claimed }

func ClaimIn(base, dir, name string) (*Claim, error) {
	file, err := lockFile(base, dir, name)
	if err != nil {
		return nil, err
	}
	return &Claim{claimed{file: file}}, nil
}

func (c *Claim) SetName(link string) { c.setName(link) }
func (c *Claim) Release()            { c.release() }

var ErrHeld = errHeld

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
