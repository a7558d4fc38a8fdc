package engine

import (
	"context"
	"slices"
	"time"

	"goipip/internal/packet"

	"golang.org/x/time/rate"
)

// pollInterval is how often a tunnel looks at what no event tells of: a route
// that appears, a path MTU that expires, a module.
const pollInterval = time.Second

// Limits of how often watch looks: what goes on all the time, a router's routes or
// somebody's ICMP errors, shall not keep it busy.
const (
	looksPerSecond = 100
	looksBurst     = 10
)

// pathStaleAfter is how long what was seen of the path is good enough to refuse a
// packet.
const pathStaleAfter = time.Millisecond

// watch keeps up with the host until ctx is done.
func (t *Tunnel) watch(ctx context.Context) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	limit := rate.NewLimiter(looksPerSecond, looksBurst)
	for limit.Wait(ctx) == nil {
		select {
		case <-ctx.Done():
			return
		case <-t.changed:
			t.look()
		case <-t.doubt:
		case <-poll.C:
			if t.modulesChanged() {
				t.look()
			}
		}
		t.lookAtPath()
		t.chooseRoad()
		t.reconnect()
	}
}

// listen wakes watch when something changed, until the host is stopped.
func (t *Tunnel) listen() {
	for {
		e, err := t.host.wait()
		if err != nil {
			return
		}
		if e.links {
			wake(t.changed)
		}
		if e.path {
			wake(t.doubt)
		}
	}
}

// wake has watch look at something, now or when it is done with what it does.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is going to look anyway
	}
}

// look takes over the host's own addresses (G2, T14), and the MTU of the link. A link
// that was moved to another namespace keeps its last.
func (t *Tunnel) look() {
	t.looking.Lock()
	defer t.looking.Unlock()
	own, err := t.host.addresses()
	if err != nil {
		t.log.Warn("cannot see this host's addresses: keeping those that were there before", "err", err)
	} else {
		t.foreign = !slices.Contains(own, t.cfg.Local)
		t.decap.SetOwn(own)
		t.tx.encap.SetOwn(own)
	}
	mtu, here := t.host.tunnelLink(t.device.Index())
	if t.here = here; here {
		t.mtu.Store(int64(mtu))
	}
	t.lookForCompany()
}

// lookForCompany warns, once, of what disturbs the tunnel on this host, and tells
// when that is over.
func (t *Tunnel) lookForCompany() {
	_, t.tunnel4 = moduleUsers("tunnel4")
	company := t.host.company()
	if t.disturbed == (company != "") {
		return
	}
	t.disturbed = company != ""
	if !t.disturbed {
		t.log.Info("nothing else here answers ipip packets any more")
		return
	}
	t.log.Warn("the kernel answers every ipip packet too, with ICMP 3/3, which a kernel at the other end takes for an error: "+companyCure,
		"module", company)
}

// modulesChanged reports whether tunnel4 came or went since the last look. No event
// tells of that.
func (t *Tunnel) modulesChanged() bool {
	_, loaded := moduleUsers("tunnel4")
	return loaded != t.tunnel4
}

// freshPath returns the path as it is now, or was a moment ago, for a decision that
// its sender will believe for ten minutes (T7).
func (t *Tunnel) freshPath() *underlay {
	if time.Since(t.tx.underlay.Load().at) > pathStaleAfter {
		t.lookAtPath()
	}
	return t.tx.underlay.Load()
}

// lookAtPath looks up the way to the remote end, and has the MTU of the link
// follow it, unless a person set that (O2).
func (t *Tunnel) lookAtPath() {
	t.looking.Lock()
	defer t.looking.Unlock()
	u, ok := t.host.underlay(t.cfg)
	u.at = time.Now()
	if !ok {
		// Every packet fits: the kernel is to refuse it for the real reason.
		t.tx.underlay.Store(&underlay{mtu: packet.IPv4MaxLen, foreign: t.foreign, at: u.at})
		return
	}
	t.reported.Load().limit(&u, time.Now())
	u.loop = t.here && u.device == t.device.Index()
	if before := t.tx.underlay.Swap(&u); u.loop && !before.loop {
		t.log.Warn("the route to the remote address leads into the tunnel itself: all packets are dropped until it does not (ip route add)",
			"remote", t.cfg.Remote)
	}
	if u.loop || !t.here || t.cfg.MTU != 0 || t.MTU() != t.derivedMTU {
		return
	}
	mtu := tunnelMTU(u.deviceMTU)
	if mtu == t.derivedMTU {
		return
	}
	if err := t.host.setMTU(t.device.Index(), mtu); err != nil {
		t.log.Warn("cannot set the mtu of the link", "mtu", mtu, "err", err)
		return
	}
	t.log.Info("the mtu of the link follows the route to the remote address", "mtu", mtu)
	t.derivedMTU = mtu
	t.mtu.Store(int64(mtu))
}

// connect connects the guard, and the receivers that are not connected yet. Without it
// the tunnel works too, but the kernel copies the packets of every other ipip tunnel to
// its sockets, and tells of no ICMP errors.
func (t *Tunnel) connect() error {
	if err := t.guard.Connect(); err != nil {
		return err
	}
	for t.connected < len(t.receives) {
		if err := t.receives[t.connected].receiver.Connect(); err != nil {
			return err
		}
		t.connected++
	}
	return nil
}

// reconnect connects when there is a way, in a tunnel that was started without.
func (t *Tunnel) reconnect() {
	if t.connected < len(t.receives) && t.connect() == nil {
		t.log.Info("there is a route to the remote address now", "remote", t.cfg.Remote)
	}
}

// warnUnreachable connects for the first time, and tells a person what stands
// in the way of traffic.
func (t *Tunnel) warnUnreachable() {
	err := t.connect()
	switch {
	case t.foreign:
		t.log.Warn("the local address is not on this host: no packets pass until it is (ip address add)",
			"local", t.cfg.Local)
	case err != nil:
		t.log.Warn("no route to the remote address: packets are dropped until there is one (ip route add)",
			"remote", t.cfg.Remote, "err", err)
	}
}
