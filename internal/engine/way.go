package engine

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"goipip/encap"
	"goipip/internal/packet"
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
		PathMTU: w.guard.PathMTU,
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
		n += tx.count.packets.Load()
	}
	return n
}

// Settle does what a change of the path calls for and may take a moment: it binds
// sockets to their device, connects them, sets the link's MTU, and logs.
func (w *way) Settle() {
	w.settling.Lock()
	defer w.settling.Unlock()
	s := w.situation.Load()
	w.bind(s.path.Bound)
	w.connect()
	w.logTrouble(s)
	if s.here && s.path.Device != 0 && !s.loop {
		w.followMTU(s.path)
	}
}

// bind binds the sockets that send to a device (O6), which may have come again under
// another index.
func (w *way) bind(device int) {
	if device == 0 || device == w.bound {
		return
	}
	var err error
	for _, tx := range w.transmits {
		err = errors.Join(err, tx.sender.SetDevice(device))
	}
	for _, s := range w.connecting() {
		err = errors.Join(err, s.SetDevice(device))
	}
	switch {
	case err == nil:
		w.bound = device
	case w.unbound != device:
		w.unbound = device
		w.log.Warn("cannot bind to the device that packets leave by: they are dropped", "device", w.cfg.Device, "err", err)
	}
}

// socket is one that receives.
type socket interface {
	Connect() error
	SetDevice(index int) error
}

// connecting returns the sockets that receive, in the order in which they connect.
func (w *way) connecting() []socket {
	sockets := []socket{w.guard}
	for _, rx := range w.receives {
		sockets = append(sockets, rx.receiver)
	}
	return sockets
}

// connect connects the sockets that receive, which takes a route. Without that the
// tunnel works too, but the kernel copies the packets of every other ipip tunnel
// to its sockets, and reports no ICMP errors.
func (w *way) connect() {
	for _, s := range w.connecting()[w.connected:] {
		if s.Connect() != nil {
			return
		}
		w.connected++
	}
}

// Reasons for which no packet leaves. Each is logged when it begins.
const (
	troubleLocal  = "the local address is not on this host: no packets pass until it is (ip address add)"
	troubleRoute  = "no route to the remote address: packets are dropped until there is one (ip route add)"
	troubleDevice = "the device that packets leave by is gone: they are dropped until there is one of that name"
	troubleLoop   = "the route to the remote address leads into the tunnel itself: all packets are dropped until it does not (ip route add)"
)

func (s *situation) trouble(device string) string {
	switch {
	case device != "" && s.path.Bound == 0:
		return troubleDevice
	case s.path.LocalMissing:
		return troubleLocal
	case s.path.Reason != "":
		return troubleRoute
	case s.loop:
		return troubleLoop
	}
	return ""
}

// logTrouble logs why no packet leaves, and when they do again: what the counters of a
// TUN link do not show.
func (w *way) logTrouble(s *situation) {
	trouble := s.trouble(w.cfg.Device)
	if trouble == w.trouble || !w.troubleLog.Allow() {
		return
	}
	w.trouble = trouble
	if trouble == "" {
		w.log.Info("packets can leave again", "remote", w.cfg.Remote)
		return
	}
	args := []any{"local", w.cfg.Local, "remote", w.cfg.Remote}
	if w.cfg.Device != "" {
		args = append(args, "device", w.cfg.Device)
	}
	if trouble == troubleRoute {
		args = append(args, "err", s.path.Reason)
	}
	w.log.Warn(trouble, args...)
}

// tunnelMTU is the MTU that Linux gives a tunnel (O2; ip_tunnel_bind_dev in
// net/ipv4/ip_tunnel.c): that of the device which the route to the remote end
// leaves by, or of the configured one, or an Ethernet's, less the outer header.
func (w *way) tunnelMTU() int {
	const ethernet = 1500
	p := w.situation.Load().path
	if p.Device != 0 {
		return mtuOver(p.DeviceMTU)
	}
	if p.Reason == "" { // by a rule that chooses by protocol
		return mtuOver(p.MTU)
	}
	if l, ok := w.host.Link(p.Bound); ok {
		return mtuOver(l.MTU)
	}
	return mtuOver(ethernet)
}

// mtuOver is the MTU of a tunnel over a device of an MTU, both in bytes.
func mtuOver(device int) int {
	return max(min(device, packet.IPv4MaxLen)-encap.HdrLen, MinMTU)
}

// followMTU makes the link's MTU follow the route's device, unless it was set otherwise
// (O2).
func (w *way) followMTU(p underlay.Path) {
	mtu := mtuOver(p.DeviceMTU)
	if w.cfg.MTU != 0 || w.MTU() != w.derivedMTU || mtu == w.derivedMTU {
		return
	}
	if err := w.host.SetMTU(w.device.Index(), mtu); err != nil {
		if w.refusedMTU != mtu {
			w.refusedMTU = mtu
			w.log.Warn("cannot set the mtu of the link", "mtu", mtu, "err", err)
		}
		return
	}
	w.log.Info("the mtu of the link follows the route to the remote address", "mtu", mtu)
	w.derivedMTU = mtu
}
