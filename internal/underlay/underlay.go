// Package underlay watches one network namespace for everything that outer packets
// depend on: routes, rules, neighbours, links, addresses, filters, and path MTUs.
//
// A [Watcher] knows nothing of tunnels. Follow asks it for the [Path] between two
// addresses, and it calls the [Follower] back whenever that changes. Its netlink requests
// run on goroutines of its own and on those that call Follow; packet loops never wait
// for one.
//
// An event costs work for the Followings that it concerns, and an idle Following costs
// next to nothing, so that one Watcher serves thousands.
package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pollInterval is how often a Watcher checks what no event announces: path MTUs that other
// sockets of this host have learned, legacy iptables, kernel modules.
const pollInterval = time.Second

// Of the Followings that have sent nothing since the last poll, a poll looks up one in
// idlePolls, but at least idleLookups if there are as many.
const (
	idlePolls   = 60
	idleLookups = 10
)

// Limits on run. Frequent events, such as those of a router's routes or ICMP errors,
// must not keep it busy. The second pair matters with many Followings: a change of the
// default route concerns all. Bursts leave quiet times their immediate reaction.
const (
	passesPerSecond  = 100
	passesBurst      = 10
	lookupsPerSecond = 5000
	lookupsBurst     = 10_000
)

// Watcher watches one network namespace. All of its methods may be called by any
// goroutine, except from within a Follower's methods.
type Watcher struct {
	log    *slog.Logger
	kernel *kernel

	wake    chan struct{} // requests a pass by run
	stop    context.CancelFunc
	running sync.WaitGroup

	// mu guards what follows, and orders the calls of Followers. It is held briefly, and
	// never across a request to the kernel.
	mu          sync.Mutex
	links       links
	addresses   addresses
	onAddresses []func(own []netip.Addr)
	onDevice    map[string]map[*func()]struct{} // by the name of the device
	ruleByProto bool                            // some rule selects by protocol, which no lookup can ask for
	filtered    string                          // what filters outer packets; empty for nothing
	filterEvent uint64                          // counts the events about filters
	netdevEvent uint64                          // and those about chains at devices
	conflict    string                          // what else handles ipip packets, as logged
	followings  followings
	change      uint64 // counts the events that concern all Followings
	nextIdle    int    // where the next poll starts among followings.byRemote
	nextLink    int    // and where it starts to read their own links again
	observers   observers
	stale       stale // for the next pass

	reading sync.Mutex // held by readShared, so that what is read later counts
}

// stale says what is to be read again of what all paths have in common.
type stale struct {
	own, rules, filters    bool
	links, sockets, qdiscs bool // for observers
}

// Open starts to watch the network namespace of the calling thread. Messages that concern
// all tunnels there go to log. The caller closes the Watcher.
func Open(log *slog.Logger) (*Watcher, error) {
	k, err := openKernel()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	w := &Watcher{
		log:        log,
		kernel:     k,
		wake:       make(chan struct{}, 1),
		links:      newLinks(),
		addresses:  newAddresses(),
		followings: newFollowings(),
		onDevice:   map[string]map[*func()]struct{}{},
	}
	if err := w.reload(); err != nil {
		k.close()
		return nil, err
	}
	w.stale.rules, w.stale.filters = true, true
	w.readShared()
	w.lookForConflict()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	for _, work := range []func(context.Context){w.listenRoutes, w.listenQdiscs, w.listenNFTables, w.listenIPsec, w.run} {
		w.running.Go(func() { work(ctx) })
	}
	return w, nil
}

// Close stops watching. No Follower is called afterwards.
func (w *Watcher) Close() {
	w.stop()
	w.kernel.stopEvents()
	w.running.Wait()
	w.kernel.close()
}

// Link returns the link with an index, and false if there is none.
func (w *Watcher) Link(index int) (Link, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.links.byIndex[index]
	return l, ok
}

// LinkByName returns the link with a name, which may be an alternative one, and false if
// there is none.
func (w *Watcher) LinkByName(name string) (Link, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.links.named(name)
}

// SetMTU sets the MTU of a link, in bytes. It waits for the kernel.
func (w *Watcher) SetMTU(index, mtu int) error { return w.kernel.setMTU(index, mtu) }

// Do calls f on a thread in the Watcher's network namespace, and returns its error. From
// another namespace, this takes CAP_SYS_ADMIN.
func (w *Watcher) Do(f func() error) error { return w.kernel.namespace.do(f) }

// Conflict names what else in this kernel handles ipip packets: tunnel4 and the modules that
// use it, or a link. It is empty if nothing does.
func (w *Watcher) Conflict() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conflict
}

// request asks for a pass of run. Requests coalesce. It takes no lock of the Watcher.
func (w *Watcher) request() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run keeps the paths up to date until ctx is done.
func (w *Watcher) run(ctx context.Context) {
	passes := rate.NewLimiter(passesPerSecond, passesBurst)
	lookups := rate.NewLimiter(lookupsPerSecond, lookupsBurst)
	poll := time.NewTimer(pollInterval)
	defer poll.Stop()
	for passes.Wait(ctx) == nil {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-poll.C:
			w.poll()
			w.lookForConflict()
			poll.Reset(pollInterval)
		}
		n := w.pass()
		if lookups.WaitN(ctx, min(n, lookupsBurst)) != nil {
			return
		}
	}
}

// poll marks as stale what may have changed without an event: filters, observers, the paths that
// are in use, those whose MTU is a router's report, which expires, and a few of the others.
func (w *Watcher) poll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stale.filters, w.stale.links, w.stale.sockets = true, true, true
	all := w.followings.byRemote
	for _, f := range all {
		if f.retry.Swap(false) || f.reported != nil || f.follower.Sent() != f.sentAtLookup.Load() {
			f.stale.Store(true)
		}
	}
	for range min(len(all), max(idleLookups, (len(all)+idlePolls-1)/idlePolls)) {
		w.nextIdle = (w.nextIdle + 1) % len(all)
		all[w.nextIdle].stale.Store(true)
	}
}

// pass looks up everything that is stale, and returns how many paths that were.
func (w *Watcher) pass() int {
	w.readShared()
	var stale []*Following
	w.mu.Lock()
	for _, f := range w.followings.byRemote {
		if f.stale.Load() || f.seen != w.change {
			stale = append(stale, f)
		}
	}
	w.mu.Unlock()
	for _, f := range stale {
		f.update()
	}
	return len(stale)
}

// readShared reads what all paths have in common, where that is stale.
func (w *Watcher) readShared() {
	w.reading.Lock()
	defer w.reading.Unlock()
	w.mu.Lock()
	now, observing := w.stale, len(w.followings.observing) > 0
	w.stale = stale{}
	if now.own {
		w.setOwn()
	}
	w.mu.Unlock()

	if now.rules {
		byProto, err := w.kernel.ruleByProto()
		w.mu.Lock()
		byProto = byProto || err != nil // without the rules, assume the worst
		w.stale.rules = w.stale.rules || err != nil
		if w.ruleByProto != byProto {
			w.ruleByProto = byProto
			w.doubtAll()
		}
		w.mu.Unlock()
	}
	if now.filters {
		w.readFilters()
	}
	if observing {
		w.readObservers(now)
	}
}

// readFilters reads the filters, and what nftables has at devices.
func (w *Watcher) readFilters() {
	w.mu.Lock()
	filterEvent, netdevEvent := w.filterEvent, w.netdevEvent
	w.mu.Unlock()
	filtered, netdev := w.kernel.filters()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.filterEvent == filterEvent || filtered != "" {
		w.setFiltered(filtered)
	} else {
		w.readFiltersAgain(w.filtered)
	}
	if w.netdevEvent == netdevEvent || netdev != "" {
		w.setNetdev(netdev)
	} else {
		w.readFiltersAgain(w.observers.netdev)
	}
}

// readFiltersAgain has the filters read again, since what was not found may be older than an
// event: soon, unless something is known to be there. It needs mu.
func (w *Watcher) readFiltersAgain(known string) {
	w.stale.filters = true
	if known == "" { // otherwise the poll is soon enough
		w.request()
	}
}

// doubtAll has all paths looked up again. It needs mu.
func (w *Watcher) doubtAll() {
	w.change++
	w.request()
}

// setFiltered tells all Followers what filters their packets. It needs mu.
func (w *Watcher) setFiltered(found string) {
	if w.filtered == found {
		return
	}
	w.filtered = found
	for _, f := range w.followings.byRemote {
		f.publishAgain()
	}
}
