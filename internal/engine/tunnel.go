package engine

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"goipip/encap"
	"goipip/internal/stats"
	"goipip/rawsock"
	"goipip/tun"
)

// Owner is told what the packets of a tunnel call for outside the data plane. Loops call
// PathInDoubt, SoftErrors and Ended, which must not block; the goroutine of ICMP errors calls
// SoftErrors and the others.
type Owner interface {
	// PathInDoubt tells that packets fare as they should not by the Plan's Path.
	PathInDoubt()
	// SoftErrors tells whether there are senders that are still to hear of an ICMP error
	// (T8), when that changes.
	SoftErrors(pending bool)
	// PathMTUReported tells of an MTU in bytes that a router has reported for the path. It
	// returns what senders are to hear of it.
	PathMTUReported(mtu int) int
	// LeadsIn reports whether packets of this host to an inner address leave by the
	// tunnel's link.
	LeadsIn(to netip.Addr) bool
	// Ended tells that the link carries no packets any more, with tun.ErrDeleted if it was
	// deleted. It is called once at most, and not because of Close.
	Ended(error)
}

// Tunnel is a tunnel whose packets an Engine carries.
type Tunnel struct {
	engine *Engine
	owner  Owner
	log    *slog.Logger
	device *tun.Device
	ids    *encap.IDs
	plan   atomic.Pointer[plan]
	peer   rawsock.Target
	mtu    atomic.Int64 // of the link, in bytes
	soft   softErrors
	taps   atomic.Pointer[[]*Tap] // nil while nobody captures

	icmp atomic.Uint64 // ICMP errors about its packets

	outs []*outPort // by queue
	ins  []*inPort  // by worker

	ended  atomic.Bool
	closed sync.Once

	// Under the Engine's mu.
	dropsBefore uint64 // with other pairs, for want of room on a receiver
	dropsOffset uint64 // of this pair, before it was this tunnel's
}

// TunnelConfig is what Add needs.
type TunnelConfig struct {
	Device *tun.Device // set up by the Owner, which closes it after the Tunnel
	MTU    int         // of its link, in bytes
	Plan   Plan
	Owner  Owner
	Log    *slog.Logger
}

// Add starts to carry a tunnel's packets. While there is one other tunnel it must be called
// in the Engine's network namespace.
func (e *Engine) Add(cfg TunnelConfig) (*Tunnel, error) {
	t := &Tunnel{engine: e, owner: cfg.Owner, log: cfg.Log, device: cfg.Device, ids: encap.NewIDs()}
	t.soft.changed = cfg.Owner.SoftErrors
	t.mtu.Store(int64(cfg.MTU))
	p, err := e.newPlan(cfg.Plan, t.ids)
	if err != nil {
		return nil, err
	}
	t.use(p)
	queues := cfg.Device.Queues()
	for _, q := range queues {
		t.outs = append(t.outs, &outPort{tunnel: t, queue: q})
	}
	for i := range e.ins {
		q := queues[i%len(queues)]
		t.ins = append(t.ins, &inPort{
			tunnel: t,
			queue:  q,
			link:   encap.Link{TCP: q.VNet(), UDP: q.VNet() && cfg.Device.USO()},
		})
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failed != nil {
		return nil, e.failed
	}
	e.tunnels[t] = struct{}{}
	err = e.limitSockets()
	if err == nil {
		err = t.addPair(p)
	}
	for i, port := range t.outs {
		if err == nil {
			err = e.outs[i%len(e.outs)].set.Add(port.queue.FD(), port)
		}
	}
	e.start.Do(e.run) // before remove, which waits for the loops
	if err != nil {
		t.remove()
		return nil, err
	}
	return t, nil
}

// use has the loops go by p from their next batch on.
func (t *Tunnel) use(p *plan) {
	t.plan.Store(p)
	t.peer.Set(p.Route)
}

// addPair has packets of the pair received. It needs the Engine's mu.
func (t *Tunnel) addPair(p *plan) error {
	t.engine.table.add(p.pair(), t)
	for _, in := range t.engine.ins {
		if err := in.receiver.Add(p.pair()); err != nil {
			return err
		}
	}
	t.dropsOffset = t.receiverDrops(p)
	return nil
}

// removePair ends what addPair began.
func (t *Tunnel) removePair(p *plan) {
	t.engine.table.remove(p.pair(), t)
	for _, in := range t.engine.ins {
		_ = in.receiver.Remove(p.pair()) // of a socket that is closed, at worst
	}
	t.dropsBefore += t.receiverDrops(p) - t.dropsOffset
	t.dropsOffset = t.receiverDrops(p)
}

// receiverDrops returns how many packets of a pair found no room on a receiver.
func (t *Tunnel) receiverDrops(p *plan) (n uint64) {
	for _, in := range t.engine.ins {
		n += in.receiver.PairDrops(p.pair())
	}
	return n
}

// SetPlan replaces the Plan. With other addresses than before it must be called in the
// Engine's network namespace. One goroutine at a time may call it, and Close.
func (t *Tunnel) SetPlan(next Plan) error {
	p, err := t.engine.newPlan(next, t.ids)
	if err != nil {
		return err
	}
	before := t.plan.Load()
	if p.pair() == before.pair() {
		t.use(p)
		return nil
	}
	e := t.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	t.dropsBefore += t.receiverDrops(before) - t.dropsOffset
	if err := t.addPair(p); err != nil {
		t.engine.table.remove(p.pair(), t)
		return err
	}
	t.use(p)
	e.table.remove(before.pair(), t)
	for _, in := range e.ins {
		_ = in.receiver.Remove(before.pair())
	}
	return e.limitSockets()
}

// SetMTU tells of the MTU of the tunnel's link, in bytes. Any goroutine may call it.
func (t *Tunnel) SetMTU(mtu int) { t.mtu.Store(int64(mtu)) }

// MTU returns the MTU of the tunnel's link in bytes, as last told.
func (t *Tunnel) MTU() int { return int(t.mtu.Load()) }

// Sent returns how many packets from the link have been sent, or dropped.
func (t *Tunnel) Sent() (n uint64) {
	for _, port := range t.outs {
		n += port.count.Total()
	}
	return n
}

// Passed returns how much has been passed on in both directions. Unlike Stats it asks the
// kernel nothing.
func (t *Tunnel) Passed() stats.Snapshot {
	var s stats.Snapshot
	for _, port := range t.outs {
		port.count.AddPassedTo(&s.TX)
	}
	for _, port := range t.ins {
		port.count.AddPassedTo(&s.RX)
	}
	return s
}

// Stats returns the counters of both directions, with what the kernel dropped before a
// loop saw it (G5).
func (t *Tunnel) Stats() stats.Snapshot { return t.stats(t.device.QueueDrops()) }

// LastStats is Stats without a request about the link, which would wait for changes of all
// links (rtnl_lock in net/core/rtnetlink.c): of packets that the link's queue had no room for,
// it has those that the device's QueueDrops found last.
func (t *Tunnel) LastStats() stats.Snapshot { return t.stats(t.device.LastQueueDrops()) }

func (t *Tunnel) stats(queueDrops uint64) stats.Snapshot {
	var s stats.Snapshot
	for _, port := range t.outs {
		port.count.AddTo(&s.TX)
	}
	for _, port := range t.ins {
		port.count.AddTo(&s.RX)
	}
	s.TX.Drops[stats.QueueFull] += queueDrops
	e := t.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	s.RX.Drops[stats.RcvbufFull] += t.dropsBefore + t.receiverDrops(t.plan.Load()) - t.dropsOffset
	if e.only == t {
		s.RX.Drops[stats.RcvbufFull] += e.Unattributed()
	}
	return s
}

// end tells the Owner that the link does not work any more.
func (t *Tunnel) end(err error) {
	if !t.ended.Swap(true) {
		t.owner.Ended(err)
	}
}

// Close ends the carrying of packets: no loop uses the device any more when it returns,
// but to deliver what it has received. Closing once more does nothing.
func (t *Tunnel) Close() {
	t.closed.Do(func() {
		t.ended.Store(true)
		t.engine.mu.Lock()
		defer t.engine.mu.Unlock()
		t.remove()
	})
}

// remove needs the Engine's mu.
func (t *Tunnel) remove() {
	e := t.engine
	for i, port := range t.outs {
		e.outs[i%len(e.outs)].set.Remove(port.queue.FD())
	}
	t.removePair(t.plan.Load())
	delete(e.tunnels, t)
	t.closeTaps()
	if err := e.limitSockets(); err != nil {
		e.log.Debug("the sockets of the last tunnel stay open for others", "err", err)
	}
}

// TellSoftErrors calls the Owner's SoftErrors, with what it was told last.
func (t *Tunnel) TellSoftErrors() { t.soft.tell() }

// ICMPErrors returns how many ICMP errors about the tunnel's packets have been handled.
func (t *Tunnel) ICMPErrors() uint64 { return t.icmp.Load() }

// SoftErrors returns how many of the next senders are to hear of an ICMP error (T8).
func (t *Tunnel) SoftErrors() int { return t.soft.left(time.Now()) }
