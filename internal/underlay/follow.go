package underlay

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"goipip/internal/packet"
)

// Query asks for the path of packets from Local to Remote.
type Query struct {
	Local, Remote netip.Addr // IPv4; Local may be the zero Addr, for the source that the route has
	Device        string     // by which they leave (O6); empty for any
	TOS           uint8      // by which the route is chosen, without ECN bits
	Mark          uint32     // by which the route is chosen (fwmark, O10)
	Link          int        // index of the Follower's own link, for LinkChanged

	// NextHop asks for Path.Hop too.
	NextHop   bool
	Observers bool // asks for Path.Observed too
	// Probe returns the MTU in bytes and the source of the path by a device, or with 0 by any,
	// as a socket of protocol 4 has them. It is called where a lookup by netlink cannot
	// answer for that protocol.
	Probe func(device int) (mtu int, source netip.Addr, err error)
}

// Path is the path of outer packets. It is a value: a change makes another Path.
type Path struct {
	Reason string // why there is no path; empty if there is one
	// LocalMissing reports that the local address is not on this host. The kernel's
	// tunnel has no route then (T3), while a raw socket may send from any address.
	LocalMissing bool
	// Source is the source of packets: the Query's Local, or without that the address that
	// the route has (fib_result_prefsrc in net/ipv4/fib_semantics.c), and the zero Addr while
	// there is no route.
	Source netip.Addr

	Bound     int        // index of the Query's device; 0 while there is none
	Device    int        // index of the device by which packets leave; 0 if not known
	RouteType int        // of the route, RTN_UNICAST and so on (rtnetlink(7)); 0 if not known
	DeviceMTU int        // in bytes
	Gateway   netip.Addr // the next hop's address
	MTU       int        // of the whole path, as far as known, in bytes
	Reported  int        // of that, what Report recorded and the kernel does not know, in bytes; 0 for none
	// Locked reports that the path claims an MTU below net.ipv4.route.min_pmtu. The
	// kernel then keeps to that minimum, and clears DF so that routers can fragment
	// (ip_mtu_locked in include/net/ip.h).
	Locked bool

	Hop       Hop    // for a packet socket; valid if HopReason is empty
	HopReason string // why a packet socket cannot send
	Filtered  string // what sees a raw socket's packets, but not a packet socket's; empty for nothing
	// Observed is what sees packets of the Query's Link, or packets that come by Device, that
	// a program between the two would keep from it; empty for nothing. A packet socket is
	// known within a second. So is an XDP program of which no event tells, if there are 100
	// Queries or fewer; with more, a second for each 100.
	Observed string
}

// Hop is the next hop: a neighbour on an Ethernet.
type Hop struct {
	Device int     // index of the device that leads there
	Addr   [6]byte // link-layer address
}

// Follower is called back by a Watcher. PathChanged, LinkChanged and Sent may be called with
// the Watcher locked: they must neither wait nor call the Watcher.
type Follower interface {
	// PathChanged is called with each Path that differs from the one before. Calls of it
	// and of LinkChanged never overlap.
	PathChanged(Path)
	// LinkChanged is called when the Follower's own link has changed; here is false once
	// the link has left this namespace.
	LinkChanged(l Link, here bool)
	// Sent returns how many packets the Follower has tried to send so far, including those
	// that the Path made it drop, and perhaps those that came by its device. While that
	// number grows, the Watcher looks the path up every second, and has the kernel confirm a
	// neighbour that has been silent for long, as the kernel does for packets of its own.
	Sent() uint64
	// Settle is called after each lookup, whether or not the Path changed: after events
	// that concern it, after Doubt and Retry, every second while packets are sent, and
	// otherwise about once a minute. It may wait, and call the Watcher; a Settle that
	// could not finish its work calls Retry.
	Settle()
}

// Following is a Query that is being followed.
type Following struct {
	w        *Watcher
	query    Query
	follower Follower

	stale atomic.Bool // the path is to be looked up by the next pass
	retry atomic.Bool // the next poll sets stale

	updating     sync.Mutex    // held for a lookup and the Settle after it
	sentAtLookup atomic.Uint64 // Follower.Sent at the last lookup
	sentAtProbe  atomic.Uint64 // and when the neighbour was probed last

	// Under the Watcher's mu.
	closed    bool
	seen      uint64 // Watcher.change at the last lookup
	path      Path   // as published last
	published bool   // path was
	depends   dependencies
	reported  *reportedMTU
	bound     int // index of the Query's device, also after that is gone
}

// Follow looks q up, calls the Follower with the result, and again with each change until
// the Following is closed. It waits for the kernel.
func (w *Watcher) Follow(q Query, to Follower) *Following {
	f := &Following{w: w, query: q, follower: to}
	f.updating.Lock()
	defer f.updating.Unlock()
	w.mu.Lock()
	if q.Observers && len(w.followings.observing) == 0 {
		w.forgetObservers()
	}
	w.followings.add(f)
	f.seen = w.change
	link, here := w.links.byIndex[q.Link]
	if here {
		to.LinkChanged(link, true)
	}
	unread := q.Observers && w.observers.sockets.unknown == notYet
	w.mu.Unlock()
	if unread {
		w.readShared()
	}
	if q.Observers && here {
		w.readLinks([]Link{link})
	}
	f.look()
	return f
}

// Close ends the following. The Follower is not called afterwards.
func (f *Following) Close() {
	f.w.mu.Lock()
	f.closed = true
	f.w.followings.remove(f)
	f.w.mu.Unlock()
	f.updating.Lock() // waits for a Settle
	defer f.updating.Unlock()
}

// Doubt requests a lookup of the path, and a Settle after it, as soon as possible: packets
// did not fare as the path says, or there is something to settle. It takes no lock, so
// any goroutine may call it at any time, also from within a Follower's methods.
func (f *Following) Doubt() { f.doubt() }

// Retry does the same within about a second. Settle calls it when it must try something
// again that no event will announce.
func (f *Following) Retry() { f.retry.Store(true) }

func (f *Following) doubt() {
	if !f.stale.Swap(true) {
		f.w.request()
	}
}

// Report records a path MTU, in bytes, that a router has reported. The kernel keeps it by
// itself for the route that a socket without a device, TOS and mark takes; for any other
// Query the Following remembers it (O4, O6, O10).
func (f *Following) Report(mtu int) {
	if q := &f.query; q.Device != "" || q.TOS != 0 || q.Mark != 0 {
		l := f.w.kernel.limits()
		f.w.mu.Lock()
		f.reported = f.reported.report(mtu, f.path, l)
		f.w.mu.Unlock()
	}
	f.doubt()
}

// LimitReport returns the MTU for senders that follows from a path MTU reported by a
// router, both in bytes: no less than net.ipv4.route.min_pmtu, and no more than the path
// has.
func (f *Following) LimitReport(mtu int) int {
	l := f.w.kernel.limits()
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return min(max(mtu, l.minimum), f.path.MTU)
}

// update looks the path up and lets the Follower settle, unless it was closed.
func (f *Following) update() {
	f.updating.Lock()
	defer f.updating.Unlock()
	if f.look() {
		f.follower.Settle()
	}
}

// look looks the path up and publishes it. It reports false once f is closed. It needs
// updating.
func (f *Following) look() bool {
	w := f.w
	w.mu.Lock()
	if f.closed {
		w.mu.Unlock()
		return false
	}
	w.followings.lookups[f] = struct{}{}
	f.seen = w.change
	f.stale.Store(false)
	bound := f.bind()
	reported, byProto, source := f.reported, w.ruleByProto, f.path.Source
	w.mu.Unlock()

	sent := f.follower.Sent()
	f.sentAtLookup.Store(sent)
	a := w.lookup(f.query, bound, byProto)
	if a.failed && !a.path.Source.IsValid() {
		a.path.Source = source
	}
	reported.limit(&a.path, time.Now())
	if a.hopStale && sent != f.sentAtProbe.Load() {
		f.sentAtProbe.Store(sent)
		w.kernel.probe(a.path)
	}
	if a.failed {
		f.Retry()
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.followings.lookups, f)
	if f.closed {
		return false
	}
	depends := a.dependencies(f.query)
	depends.foreign = w.isForeign(&a, f.query)
	w.followings.setDependencies(f, depends)
	f.publish(a.path)
	return true
}

// bind returns the index of the Query's device: of the first link that had the name, as
// long as that exists, under whatever name, as in Linux; then of the next link with that
// name. It is 0 while there is none. It needs mu.
func (f *Following) bind() int {
	if f.query.Device == "" {
		return 0
	}
	if _, ok := f.w.links.byIndex[f.bound]; ok {
		return f.bound
	}
	l, ok := f.w.links.named(f.query.Device)
	if !ok {
		return 0
	}
	f.bound = l.Index
	return l.Index
}

// publishAgain publishes the path of the last lookup, if there was one. It needs mu.
func (f *Following) publishAgain() {
	if f.published {
		f.publish(f.path)
	}
}

// publish completes p with what does not come from a lookup, and tells the Follower of a
// change. It needs mu.
func (f *Following) publish(p Path) {
	p.LocalMissing = f.query.Local.IsValid() && !f.w.addresses.has(f.query.Local)
	p.Filtered = f.w.filtered
	if f.query.Observers {
		p.Observed = f.w.observed(f.query.Link, p.Device)
	}
	if f.published && p == f.path {
		return
	}
	f.path, f.published = p, true
	f.follower.PathChanged(p)
}

// answer is the result of a lookup.
type answer struct {
	path     Path
	device   int  // index of the route's device, even if nothing else is known of that
	hopStale bool // the kernel would probe the neighbour before long
	failed   bool // the lookup did, which says nothing about the path: retry
}

// dependencies returns what an answer depends on.
func (a *answer) dependencies(q Query) dependencies {
	d := dependencies{bound: a.path.Bound, device: a.device, unreachable: a.path.Reason != ""}
	if q.NextHop && a.path.Device != 0 {
		d.neighbour = neighbour{a.path.Device, a.path.Gateway.Unmap()}
	}
	return d
}

// lookup asks the kernel for a path.
func (w *Watcher) lookup(q Query, bound int, byProto bool) (a answer) {
	p := &a.path
	p.Bound, p.MTU, p.Source = bound, packet.IPv4MaxLen, q.Local
	if q.Device != "" && bound == 0 {
		p.Reason = "no device " + q.Device
		return a
	}
	if byProto {
		lookupByProto(p, q)
		return a
	}
	r, err := w.kernel.route(q, bound)
	if err != nil {
		p.Reason = err.Error()
		a.failed = !isNoRoute(err)
		return a
	}
	a.device, p.RouteType = r.device, r.typ
	if !q.Local.IsValid() {
		p.Source = r.source
	}
	link, ok := w.Link(r.device)
	if !ok {
		p.Reason = "the route's device is not known (yet)"
		return a
	}
	p.Device, p.DeviceMTU, p.Gateway, p.Locked = r.device, link.MTU, r.gateway, r.locked
	if !p.Gateway.IsValid() {
		p.Gateway = q.Remote
	}
	p.MTU = min(link.MTU, packet.IPv4MaxLen)
	if r.mtu > 0 {
		p.MTU = min(p.MTU, r.mtu)
	}
	if !p.Source.IsValid() {
		p.Reason = errNoSource.Error()
		return a
	}
	if q.NextHop {
		a.hopStale = w.kernel.setHop(p, link, r.encap)
	}
	return a
}

// lookupByProto completes p where a rule selects by protocol. RTM_GETROUTE refuses
// protocol 4 and would answer for UDP, so the route stays unknown, the raw socket sends,
// and a socket of protocol 4 has the MTU.
func lookupByProto(p *Path, q Query) {
	p.HopReason = "a rule selects routes by protocol (ip rule … ipproto)"
	mtu, source, err := q.Probe(p.Bound)
	if err == nil && (!source.IsValid() || source.IsUnspecified()) {
		err = errNoSource
	}
	if err != nil {
		p.Reason = err.Error()
		return
	}
	p.MTU, p.Source = min(mtu, packet.IPv4MaxLen), source
}

// errNoSource is for a Query without Local on a host that has no address.
var errNoSource = errors.New("there is a route, but no address of this host to send from")

// isNoRoute reports whether an error of RTM_GETROUTE says that there is no route
// (ip_route_output_key_hash_rcu in net/ipv4/route.c).
func isNoRoute(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EACCES, syscall.EINVAL, syscall.ENODEV, syscall.ENETDOWN,
	}, func(noRoute error) bool { return errors.Is(err, noRoute) })
}

// LeadsInto reports whether packets from this host to an address leave by a link. It does
// not consider rules about the source or the incoming link of forwarded packets. It
// waits for the kernel.
func (w *Watcher) LeadsInto(to netip.Addr, link int) bool {
	r, err := w.kernel.route(Query{Remote: to}, 0)
	return err == nil && r.device == link
}
