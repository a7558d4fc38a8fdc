// Package underlay watches one network namespace for what outer packets depend on:
// routes, rules, neighbours, links, addresses, filters and path MTUs.
//
// A [Watcher] knows no tunnel. It is asked for the way of packets between two
// addresses (Follow), answers with a [Path], and tells when that changes. All of its
// netlink requests run on a goroutine of its own; packet loops never wait for one.
package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pollInterval is how often a Watcher looks at what no event announces: a path MTU
// that some other socket of this host has learned, legacy iptables, kernel modules.
const pollInterval = time.Second

// Limits on passes of run: frequent events, such as those of a router's routes or of
// somebody's ICMP errors, must not keep it busy.
const (
	passesPerSecond = 100
	passesBurst     = 10
	// A pass that took longer than quickPass is followed by a rest of restFactor times as
	// long: many paths may depend on the routes that change.
	quickPass  = 2 * time.Millisecond
	restFactor = 4
)

// idlePolls is how many polls it takes until the paths of all Followers that send nothing
// have been looked at.
const idlePolls = 64

// Watcher watches one network namespace. All of its methods may be called by any
// goroutine, except from within a Follower's methods.
type Watcher struct {
	log    *slog.Logger
	kernel *kernel

	wake    chan struct{} // requests a pass by run
	stop    context.CancelFunc
	running sync.WaitGroup

	// mu guards what follows, and orders the calls of Followers. It is held only for
	// moments: never across a request to the kernel.
	mu          sync.Mutex
	links       map[int]Link
	addresses   map[address]struct{}
	own         map[netip.Addr]struct{} // the local ones of addresses
	ruleByProto bool                    // some rule chooses by protocol, which no lookup can ask for
	filtered    string                  // what filters outer packets; empty for nothing
	filterEvent uint64                  // counts the events about filters
	conflict    string                  // what else answers ipip packets, as logged
	followings  map[*Following]struct{}
	follows     int // so far
	polls       int // so far
	onAddresses []func([]netip.Addr)
	stale       struct{ own, rules, filters bool } // to be looked at by the next pass
}

// Open starts to watch the network namespace of the calling thread. What concerns all
// tunnels there goes to log. The caller closes the Watcher.
func Open(log *slog.Logger) (*Watcher, error) {
	k, err := openKernel()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	w := &Watcher{
		log:        log,
		kernel:     k,
		wake:       make(chan struct{}, 1),
		followings: map[*Following]struct{}{},
	}
	if err := w.reload(); err != nil {
		k.close()
		return nil, err
	}
	w.stale.rules, w.stale.filters = true, true
	w.lookAround()
	w.lookForConflict()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	for _, work := range []func(context.Context){w.listenRoutes, w.listenNFTables, w.listenIPsec, w.run} {
		w.running.Go(func() { work(ctx) })
	}
	return w, nil
}

// Close ends the watch. No Follower is called afterwards.
func (w *Watcher) Close() {
	w.stop()
	w.kernel.stopEvents()
	w.running.Wait()
	w.kernel.close()
}

// Link returns the link of an index, and false if there is none.
func (w *Watcher) Link(index int) (Link, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.links[index]
	return l, ok
}

// LinkByName returns the link of a name, and false if there is none.
func (w *Watcher) LinkByName(name string) (Link, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.linkByName(name)
}

func (w *Watcher) linkByName(name string) (Link, bool) {
	for _, l := range w.links {
		if l.named(name) {
			return l, true
		}
	}
	return Link{}, false
}

// SetMTU sets the MTU of a link, in bytes. It waits for the kernel.
func (w *Watcher) SetMTU(index, mtu int) error { return w.kernel.setMTU(index, mtu) }

// Conflict returns what in this kernel also handles ipip packets, as a sentence with
// the remedy, or nil.
func (w *Watcher) Conflict() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conflict == "" {
		return nil
	}
	return fmt.Errorf("%s: %s", w.conflict, conflictRemedy)
}

// request asks for a pass of run. Requests coalesce.
func (w *Watcher) request() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run keeps the paths up to date until ctx is done.
func (w *Watcher) run(ctx context.Context) {
	limit := rate.NewLimiter(passesPerSecond, passesBurst)
	poll := time.NewTimer(pollInterval)
	defer poll.Stop()
	for limit.Wait(ctx) == nil {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-poll.C:
			w.poll()
			w.lookForConflict()
			poll.Reset(pollInterval)
		}
		start := time.Now()
		w.pass()
		if took := time.Since(start); took > quickPass {
			select {
			case <-ctx.Done():
				return
			case <-time.After(restFactor * took):
			}
		}
	}
}

// poll has the next pass look at what may have changed without an event: the filters, the
// paths that packets have left by since the last look, those whose MTU is a router's word,
// which expires, and a part of the others.
func (w *Watcher) poll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stale.filters = true
	w.polls++
	for f := range w.followings {
		if f.number%idlePolls == w.polls%idlePolls || f.reported != nil || f.follower.Sent() != f.sentAtLook {
			f.stale.Store(true)
		}
	}
}

// everythingStale has the next pass look at everything.
func (w *Watcher) everythingStale() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stale.filters = true
	for f := range w.followings {
		f.stale.Store(true)
	}
}

// pass looks at what is stale.
func (w *Watcher) pass() {
	w.lookAround()
	w.mu.Lock()
	var stale []*Following
	for f := range w.followings {
		if f.stale.Swap(false) {
			stale = append(stale, f)
		}
	}
	w.mu.Unlock()
	for _, f := range stale {
		f.update()
	}
}

// lookAround reads what concerns all paths, where that is stale.
func (w *Watcher) lookAround() {
	w.mu.Lock()
	stale, event := w.stale, w.filterEvent
	w.stale.own, w.stale.rules, w.stale.filters = false, false, false
	if stale.own {
		w.setOwn()
	}
	w.mu.Unlock()

	if stale.rules {
		byProto, err := w.kernel.ruleByProto()
		w.mu.Lock()
		byProto = byProto || err != nil // what cannot be seen is not relied upon
		w.stale.rules = w.stale.rules || err != nil
		if w.ruleByProto != byProto {
			w.ruleByProto = byProto
			w.doubt(func(*Following) bool { return true }) // this pass looks at them
		}
		w.mu.Unlock()
	}
	if stale.filters {
		found := w.kernel.filters()
		w.mu.Lock()
		if w.filterEvent == event || found != "" {
			w.setFiltered(found)
		} else { // found may be older than the event
			w.stale.filters = true
			if w.filtered == "" { // otherwise the poll is soon enough
				w.request()
			}
		}
		w.mu.Unlock()
	}
}

// setFiltered tells all Followers what filters their packets. It needs mu.
func (w *Watcher) setFiltered(found string) {
	if w.filtered == found {
		return
	}
	w.filtered = found
	for f := range w.followings {
		f.publishAgain()
	}
}

// setOwn tells of this host's addresses, if they have changed. It needs mu.
func (w *Watcher) setOwn() {
	own := make(map[netip.Addr]struct{}, len(w.own))
	for a := range w.addresses {
		own[a.local] = struct{}{}
	}
	if maps.Equal(own, w.own) {
		return
	}
	before := w.own
	w.own = own
	list := w.ownList()
	for _, f := range w.onAddresses {
		f(list)
	}
	for f := range w.followings {
		_, here := own[f.query.Local]
		if _, was := before[f.query.Local]; here != was {
			f.publishAgain() // which tells whether the local address is there
			f.stale.Store(true)
		}
	}
}

// ownList returns this host's addresses in their order. It needs mu.
func (w *Watcher) ownList() []netip.Addr {
	return slices.SortedFunc(maps.Keys(w.own), netip.Addr.Compare)
}

// FollowAddresses calls f with the IPv4 addresses of this host, at once and after each
// change. It calls f with the Watcher locked: f must neither wait nor call the Watcher, nor
// change the slice.
func (w *Watcher) FollowAddresses(f func(own []netip.Addr)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onAddresses = append(w.onAddresses, f)
	f(w.ownList())
}
