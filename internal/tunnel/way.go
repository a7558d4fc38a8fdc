package engine

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"goipip/internal/underlay"
	"goipip/rawsock"

	"golang.org/x/time/rate"
)

// way is what a tunnel knows of the underlay and does about it. It is the underlay's
// Follower: the Watcher's goroutines call its methods.
type way struct {
	*Tunnel
	following *underlay.Following

	// For the methods that are called one at a time.
	latest underlay.Path
	own    []netip.Addr // addresses of this host
	here   bool         // the link is in the namespace that it was made in
	hop    *rawsock.Hop // where the packet socket sends; nil for the raw socket
	// rawReason is why the raw socket sends, as logged.
	rawReason string

	situation atomic.Pointer[situation]

	// For Settle.
	settling   sync.Mutex
	trouble    string // why no packet leaves, as logged
	troubleLog *rate.Limiter
	bound      int // index of the device that sockets are bound to
	unbound    int // index of the device that they could not be bound to, as logged
	derivedMTU int // of the link, as it was set last, in bytes
	refusedMTU int // that the link did not take, as logged
	connected  int // sockets, the first ones
}

// situation is where the tunnel stands.
type situation struct {
	path underlay.Path
	here bool
	loop bool // the path leads into the tunnel itself (T4)
}

func newWay(t *Tunnel) *way {
	return &way{
		Tunnel:     t,
		here:       true,
		troubleLog: rate.NewLimiter(logPerSecond, logBurst),
		bound:      t.boundDevice,
	}
}

// query is what the tunnel asks the underlay.
func (w *way) query() underlay.Query {
	return underlay.Query{
		Local:   w.cfg.Local,
		Remote:  w.cfg.Remote,
		Device:  w.cfg.Device,
		TOS:     w.cfg.routeTOS(),
		Mark:    w.cfg.Mark,
		Link:    w.device.Index(),
		NextHop: w.cfg.Road != RoadRaw,
		PathMTU: w.receives[0].receiver.PathMTU,
	}
}

// PathChanged has the loops go by p from their next batch on.
func (w *way) PathChanged(p underlay.Path) {
	w.latest = p
	w.apply()
}

func (w *way) apply() {
	s := &situation{path: w.latest, here: w.here}
	s.loop = w.here && s.path.Device == w.device.Index()
	w.situation.Store(s)
	w.tx.path.Store(&path{
		mtu:          s.path.MTU,
		locked:       s.path.Locked,
		loop:         s.loop,
		localMissing: s.path.LocalMissing,
	})
	w.chooseHop(s)
}

// AddressesChanged takes over this host's own addresses (G2, T14).
func (w *way) AddressesChanged(own []netip.Addr) {
	w.own = own
	w.tx.encap.SetOwn(own)
	w.setMartians()
}

// setMartians has packets dropped that come from one of this host's own addresses (G2).
// A link in another namespace belongs to a host of other addresses, whose kernel drops
// what comes from those (fib_validate_source in net/ipv4/fib_frontend.c).
func (w *way) setMartians() {
	if w.here {
		w.decap.SetOwn(w.own)
	} else {
		w.decap.SetOwn(nil)
	}
}

// LinkChanged follows the tunnel's own link, as soon as that is up. One that was moved to
// another namespace keeps the MTU that it had last.
func (w *way) LinkChanged(l underlay.Link, here bool) {
	if l.Up {
		w.mtu.Store(int64(l.MTU))
	}
	if w.here != here {
		w.here = here
		w.setMartians()
		w.apply()
	}
}

// Sent returns how many packets have been sent.
func (w *way) Sent() (n uint64) {
	for _, tx := range w.transmits {
		n += tx.count.Packets()
	}
	return n
}
