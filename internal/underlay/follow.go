package underlay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"goipip/internal/packet"
)

// Query asks for the way of packets from Local to Remote.
type Query struct {
	Local, Remote netip.Addr // IPv4
	Device        string     // that they leave by (O6); empty for any
	TOS           uint8      // by which the route is chosen, without ECN bits
	Mark          uint32     // likewise (fwmark, O10)
	Link          int        // index of the Follower's own link, about which LinkChanged tells

	// NextHop asks for Path.Hop too.
	NextHop bool
	// PathMTU returns the MTU in bytes of the path by a device, or with 0 by any, as a socket
	// of protocol 4 has it. It is asked where a lookup by netlink cannot answer for that
	// protocol.
	PathMTU func(device int) (int, error)
}

// Path is the way of outer packets. It is a value: a change makes another Path.
type Path struct {
	Reason string // why there is no way; empty if there is one
	// LocalMissing tells that the local address is not on this host. The kernel's
	// tunnel has no route then (T3), while a raw socket may send from any address.
	LocalMissing bool

	Bound     int        // index of the Query's device; 0 while there is none
	Device    int        // index of the device that packets leave by; 0 if not known
	DeviceMTU int        // in bytes
	Gateway   netip.Addr // the neighbour there that they go to
	MTU       int        // of the whole path, as far as known, in bytes
	Reported  int        // of that, what Report told and the kernel does not know, in bytes; 0 for none
	// Locked tells of a path that claims an MTU below net.ipv4.route.min_pmtu. The
	// kernel then keeps to that minimum, and clears DF so that the routers may do
	// the rest (ip_mtu_locked in include/net/ip.h).
	Locked bool

	Hop       Hop    // for a packet socket; valid if HopReason is empty
	HopReason string // why a packet socket cannot send
	hopStale  bool   // the kernel would ask the neighbour whether it is still there
	Filtered  string // what would see a raw socket's packets, but not a packet socket's; empty for nothing
}

// Hop is the next hop: a neighbour on an Ethernet.
type Hop struct {
	Device int     // index of the device that leads there
	Addr   [6]byte // link-layer address
}

// Follower is told of changes. The methods but Sent and Settle are called one at a time,
// with the Watcher locked: they must neither wait nor call the Watcher.
type Follower interface {
	PathChanged(Path)
	// LinkChanged tells of the Follower's own link; false when it has left this
	// namespace.
	LinkChanged(l Link, here bool)
	// Sent returns how many packets have been sent so far. While that grows, the
	// Watcher has the kernel confirm a neighbour that it has not heard of for long,
	// as the kernel does for packets of its own.
	Sent() uint64
	// Settle is called after each look at the path, changed or not: each second while packets
	// are sent, soon after Doubt, and else about once a minute. It may wait, and call the
	// Watcher.
	Settle()
}

// Following is a Query that is being followed.
type Following struct {
	w        *Watcher
	query    Query
	follower Follower
	number   int         // counts up
	stale    atomic.Bool // the path is to be looked up again

	looking    sync.Mutex // held for a look, and for the Settle behind it
	sentBefore uint64     // packets, when the neighbour was asked last

	// Under the Watcher's mu.
	lookedUp   bool // the path is being looked up: what changes now may concern that one
	path       Path // as told last
	told       bool
	sentAtLook uint64 // packets, when the path was looked up last
	reported   *reportedMTU
	bound      int // index of the Query's device, also when it is gone
}

// Follow looks q up, tells the Follower, and goes on telling it until Close.
func (w *Watcher) Follow(q Query, to Follower) *Following {
	f := &Following{w: w, query: q, follower: to}
	w.mu.Lock()
	w.follows++
	f.number = w.follows
	w.followings[f] = struct{}{}
	if l, ok := w.links[q.Link]; ok {
		to.LinkChanged(l, true)
	}
	w.mu.Unlock()
	f.looking.Lock()
	defer f.looking.Unlock()
	f.look()
	return f
}

// Close ends the following. The Follower is not called afterwards.
func (f *Following) Close() {
	f.w.mu.Lock()
	delete(f.w.followings, f)
	f.w.mu.Unlock()
	f.looking.Lock() // waits for a Settle
	defer f.looking.Unlock()
}

// update looks the path up and lets the Follower settle, unless it was closed.
func (f *Following) update() {
	f.looking.Lock()
	defer f.looking.Unlock()
	f.w.mu.Lock()
	_, followed := f.w.followings[f]
	f.w.mu.Unlock()
	if followed {
		f.look()
		f.follower.Settle()
	}
}

// Doubt has the path looked up again soon, because packets fared as they should not. It does
// not wait, so that packet loops may call it.
func (f *Following) Doubt() {
	f.stale.Store(true)
	f.w.request()
}

// Report tells of a path MTU, in bytes, that a router has reported. The kernel keeps it
// by itself for the route that a socket without a device, TOS and mark takes; for any other
// Query the Following remembers it (O4, O6, O10).
func (f *Following) Report(mtu int) {
	if q := &f.query; q.Device != "" || q.TOS != 0 || q.Mark != 0 {
		l := f.w.kernel.limits()
		f.w.mu.Lock()
		f.reported = f.reported.report(mtu, f.path, l)
		f.w.mu.Unlock()
	}
	f.Doubt()
}

// look looks the path up and publishes it. It needs looking.
func (f *Following) look() {
	w := f.w
	w.mu.Lock()
	f.lookedUp = true
	bound := f.bind()
	reported, byProto := f.reported, w.ruleByProto
	w.mu.Unlock()

	p := w.lookup(f.query, bound, byProto)
	reported.limit(&p, time.Now())
	sent := f.follower.Sent()
	if p.hopStale && sent != f.sentBefore {
		f.sentBefore = sent
		w.kernel.probe(p)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	f.lookedUp = false
	f.sentAtLook = sent
	if _, ok := w.followings[f]; ok {
		f.publish(p)
	}
}

// publishAgain publishes the path as it was looked up last, if it was. It needs mu.
func (f *Following) publishAgain() {
	if f.told {
		f.publish(f.path)
	}
}

// bind returns the index of the Query's device: of the one that had the name first, as
// long as that exists, under whatever name, as in Linux; then of the next link of that
// name. It is 0 while there is none. It needs mu.
func (f *Following) bind() int {
	if f.query.Device == "" {
		return 0
	}
	if _, ok := f.w.links[f.bound]; ok {
		return f.bound
	}
	l, ok := f.w.linkByName(f.query.Device)
	if !ok {
		return 0
	}
	f.bound = l.Index
	return l.Index
}

// publish tells the Follower of p, with what this host says of all paths. It needs mu.
func (f *Following) publish(p Path) {
	_, here := f.w.own[f.query.Local]
	p.LocalMissing = !here
	p.Filtered = f.w.filtered
	if f.told && p == f.path {
		return
	}
	f.path, f.told = p, true
	f.follower.PathChanged(p)
}

// lookup asks the kernel for the way.
func (w *Watcher) lookup(q Query, bound int, byProto bool) Path {
	p := Path{Bound: bound, MTU: packet.IPv4MaxLen}
	if q.Device != "" && bound == 0 {
		p.Reason = "no device " + q.Device
		return p
	}
	if byProto {
		return lookupByProto(p, q)
	}
	r, err := w.kernel.route(q, bound)
	if err != nil {
		p.Reason = err.Error()
		return p
	}
	link, ok := w.Link(r.device)
	if !ok {
		p.Reason = "the route's device is not known (yet)"
		return p
	}
	p.Device, p.DeviceMTU, p.Gateway, p.Locked = r.device, link.MTU, r.gateway, r.locked
	if !p.Gateway.IsValid() {
		p.Gateway = q.Remote
	}
	p.MTU = min(link.MTU, packet.IPv4MaxLen)
	if r.mtu > 0 {
		p.MTU = min(p.MTU, r.mtu)
	}
	if q.NextHop {
		w.kernel.setHop(&p, link, r.encap)
	}
	return p
}

// lookupByProto does so where a rule chooses by protocol: RTM_GETROUTE refuses
// protocol 4 and would answer for UDP, so the route stays unknown, the raw socket
// sends, and a socket of protocol 4 tells the MTU.
func lookupByProto(p Path, q Query) Path {
	p.HopReason = "a rule chooses routes by protocol (ip rule … ipproto)"
	mtu, err := q.PathMTU(p.Bound)
	if err != nil {
		p.Reason = err.Error()
		return p
	}
	p.MTU = min(mtu, packet.IPv4MaxLen)
	return p
}

// LimitReport returns what a path MTU that a router reports, in bytes, comes to for
// senders: no less than net.ipv4.route.min_pmtu, and no more than the path has.
func (f *Following) LimitReport(mtu int) int {
	l := f.w.kernel.limits()
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return min(max(mtu, l.minimum), f.path.MTU)
}

// LeadsInto reports whether packets of this host to an address leave by a link. Rules
// about the source or the incoming link of what is forwarded are not asked. It waits for
// the kernel.
func (w *Watcher) LeadsInto(to netip.Addr, link int) bool {
	r, err := w.kernel.route(Query{Remote: to}, 0)
	return err == nil && r.device == link
}
