// Package tunnel is one ipip tunnel: its settings, its link, and what a change of either or
// of its path means. It turns them into Plans, by which an engine carries the packets.
//
// No packet passes here. A tunnel holds its pair of addresses by a claim, its link by a
// tun.Device, and follows its path in an underlay.Watcher, whose goroutines call it.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"goipip/internal/engine"
	"goipip/internal/fastpath"
	"goipip/internal/stats"
	"goipip/tun"
)

// ErrDeleted is how Run ends when somebody deleted the link.
var ErrDeleted = tun.ErrDeleted

// Limits of log lines about changes of the path: ten in five seconds, as net_ratelimit in
// the kernel.
const (
	logPerSecond = 2
	logBurst     = 10
)

// Tunnel is a tunnel whose link exists.
type Tunnel struct {
	host    *Host
	ownHost bool // of no other tunnel
	log     *slog.Logger
	device  *tun.Device
	engine  *engine.Engine
	mtu     atomic.Int64 // of the link in bytes, as last seen
	ended   chan error

	changing sync.Mutex // for Open, Change and Close
	cfg      Config
	claim    *claimed
	link     tun.Link // as it was set last
	closed   bool

	way     atomic.Pointer[way]
	packets atomic.Pointer[engine.Tunnel]   // nil until the first Plan
	kernel  atomic.Pointer[fastpath.Tunnel] // nil without a fast path

	alive alive

	attaching  atomic.Bool // the fast path is being attached
	background sync.WaitGroup

	// Of the link's MTU, under the way's settling.
	derivedMTU int // as it was set last, in bytes
	refusedMTU int // that the link did not take, as logged
}

// Open makes a tunnel of a valid cfg, in a Host of its own: its sockets, and its link,
// which is up when Open returns. Everything is made in the network namespace of the calling
// thread. Problems that do not keep the tunnel from running are logged as warnings. The
// tunnel's goroutines log too, so log must not block.
//
// The caller either calls Run, which closes the tunnel, or Close.
func Open(cfg Config, log *slog.Logger) (*Tunnel, error) {
	host, err := OpenHost(cfg.Queues, log)
	if err != nil {
		return nil, err
	}
	t, err := host.Open(cfg, log)
	if err != nil {
		host.Close()
		return nil, err
	}
	t.ownHost = true
	return t, nil
}

// Open is the function Open for a tunnel that shares the Host with others.
func (h *Host) Open(cfg Config, log *slog.Logger) (*Tunnel, error) {
	t := &Tunnel{host: h, cfg: cfg, log: log, ended: make(chan error, 1)}
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tunnel) open() (err error) {
	if t.claim, err = t.claimEnds(t.cfg); err != nil {
		return err
	}
	bound, err := t.findDevice(t.cfg.Device)
	if err != nil {
		return err
	}
	if t.device, err = t.host.devices.Open(tun.Config{
		Name:    t.cfg.Name,
		Queues:  t.cfg.Queues,
		Offload: !t.cfg.NoOffload,
	}); err != nil {
		return err
	}
	t.log = t.log.With("tunnel", t.Name())
	t.claim.setName(t.Name())
	if t.engine, err = t.host.data(t.cfg.Local); err != nil {
		return err
	}
	if err := t.chooseTransmitPath(&t.cfg); err != nil {
		return err
	}
	noFastPath, err := t.joinFastPath(t.cfg)
	if err != nil {
		return err
	}
	if err := t.prepareKeepalive(t.cfg); err != nil {
		return err
	}
	w := newWay(t, t.cfg, bound, noFastPath)
	w.settling.Lock() // until the link is up
	defer w.settling.Unlock()
	if err := w.follow(); err != nil {
		return err
	}
	t.link = t.cfg.link(t.firstMTU(w))
	t.setMTU(t.link.MTU)
	if err := t.device.Setup(t.link); err != nil {
		return err
	}
	w.settle()
	t.keepAlive(t.cfg)
	return nil
}

// claimEnds claims the ends of cfg's tunnel (O7).
func (t *Tunnel) claimEnds(cfg Config) (*claimed, error) {
	c, err := claim(cfg)
	if err == nil && c.missing != nil {
		t.log.Warn("cannot lock this pair of addresses: a second goipip with the same ends would start too, and each would "+
			"deliver every packet: make /run writable, or set XDG_RUNTIME_DIR to a directory of this user", "err", c.missing)
	}
	return c, err
}

// findDevice returns the index of the device that packets leave by (O6), or 0 for any.
func (t *Tunnel) findDevice(name string) (index int, err error) {
	if name == "" {
		return 0, nil
	}
	l, ok := t.host.underlay.LinkByName(name)
	if !ok {
		return 0, fmt.Errorf("device %q: %w: choose one of those here (ip link)", name, syscall.ENODEV)
	}
	return l.Index, nil
}

// firstMTU returns the MTU of a link that had none yet, in bytes.
func (t *Tunnel) firstMTU(w *way) int {
	if w.cfg.MTU != 0 {
		return w.cfg.MTU
	}
	t.derivedMTU = w.tunnelMTU()
	return t.derivedMTU
}

// setMTU takes over the MTU of the link, in bytes.
func (t *Tunnel) setMTU(mtu int) {
	t.mtu.Store(int64(mtu))
	if p := t.packets.Load(); p != nil {
		p.SetMTU(mtu)
	}
}

// Change makes a valid cfg the tunnel's, while packets pass. Of its link the index, the
// routes and the users stay. What Config.NeedsNewLink names cannot be changed. It must be
// called in the tunnel's network namespace. After an error, the tunnel goes on by the
// former settings, or if only the link's were refused, by the new ones.
func (t *Tunnel) Change(cfg Config) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.closed {
		return ErrDeleted
	}
	if t.cfg.NeedsNewLink(cfg) {
		return errors.New("the name, the queues and the offload of a tunnel cannot be changed")
	}
	bound, err := t.findDevice(cfg.Device)
	if err != nil {
		return err
	}
	if err := t.chooseTransmitPath(&cfg); err != nil {
		return err
	}
	noFastPath, err := t.joinFastPath(cfg)
	if err != nil {
		return err
	}
	former := t.claim
	if cfg.Local != t.cfg.Local || cfg.Remote != t.cfg.Remote {
		if t.claim, err = t.claimEnds(cfg); err != nil {
			t.claim = former
			return err
		}
		t.claim.setName(t.Name())
		defer former.release()
	}
	if err := t.prepareKeepalive(cfg); err != nil {
		return err
	}
	before := t.way.Load()
	before.following.Close()
	w := newWay(t, cfg, bound, noFastPath)
	w.settling.Lock()
	defer w.settling.Unlock()
	if err := w.follow(); err != nil {
		if k := t.kernel.Load(); k != nil {
			k.Stop()
		}
		return err
	}
	link := cfg.link(t.nextMTU(w))
	err = t.device.Change(t.link, link)
	t.cfg, t.link = cfg, link
	w.settle()
	t.keepAlive(cfg)
	return err
}

// nextMTU returns the MTU of the link after a change of the settings, in bytes. Where it is
// derived from the route, it stays as it is, and settle follows the route, unless it was not
// derived before, or the device or the mark is another one (ip_tunnel_update in
// net/ipv4/ip_tunnel.c).
func (t *Tunnel) nextMTU(w *way) int {
	switch {
	case w.cfg.MTU != 0:
		return w.cfg.MTU
	case t.cfg.MTU != 0 || t.cfg.Device != w.cfg.Device || t.cfg.Mark != w.cfg.Mark:
		t.derivedMTU = w.tunnelMTU()
		return t.derivedMTU
	}
	return t.link.MTU
}

// link is what the settings say of the link.
func (c Config) link(mtu int) tun.Link {
	return tun.Link{
		MTU:     mtu,
		Remote:  c.Remote,
		Alias:   c.describe(),
		Address: c.Address,
		Peer:    c.Peer,

		Addresses: c.Addresses,
		Routes:    c.Routes,

		Down: c.Down,
	}
}

// Name returns the name that the link was created with.
func (t *Tunnel) Name() string { return t.device.Name() }

// MTU returns the link's MTU in bytes, as last seen.
func (t *Tunnel) MTU() int { return int(t.mtu.Load()) }

// Stats returns the tunnel's counters.
func (t *Tunnel) Stats() stats.Snapshot {
	s := t.packets.Load().Stats()
	s.Add(t.fastStats())
	return s
}

// LastStats is Stats without a request to the kernel about the link: of packets that the link's
// queue had no room for, it has those that Stats or ReadQueueDrops found last.
func (t *Tunnel) LastStats() stats.Snapshot {
	s := t.packets.Load().LastStats()
	s.Add(t.fastStats())
	return s
}

// ReadQueueDrops asks the kernel what LastStats is to have.
func (t *Tunnel) ReadQueueDrops() { t.device.QueueDrops() }

// Passed returns how much has been passed on in both directions.
func (t *Tunnel) Passed() stats.Snapshot {
	s := t.packets.Load().Passed()
	s.Add(t.fastStats())
	return s
}

// Tap gets copies of the packets that a tunnel drops.
type Tap = engine.Tap

// Tap returns a Tap for what the tunnel drops from now on, until its end. The caller closes it.
func (t *Tunnel) Tap() *Tap { return t.packets.Load().Tap() }

// Run waits until ctx is done, and returns nil; or until the link is deleted, and returns
// ErrDeleted; or until the link does not work any more for another reason, and returns that.
// It closes the tunnel in any case.
func (t *Tunnel) Run(ctx context.Context) error {
	defer t.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-t.ended:
		return err
	}
}

// Ended ends Run.
func (t *Tunnel) Ended(err error) { t.ended <- err }

// PathInDoubt has the path looked up again soon.
func (t *Tunnel) PathInDoubt() { t.way.Load().following.Doubt() }

// PathMTUReported takes note of a shorter path.
func (t *Tunnel) PathMTUReported(mtu int) int {
	f := t.way.Load().following
	f.Report(mtu)
	return f.LimitReport(mtu)
}

// LeadsIn reports whether packets to an inner address leave by the tunnel's link.
func (t *Tunnel) LeadsIn(to netip.Addr) bool {
	return t.host.underlay.LeadsInto(to, t.device.Index())
}

var _ engine.Owner = (*Tunnel)(nil)

// Close removes the link, and everything else of the tunnel. Closing once more does
// nothing.
func (t *Tunnel) Close() {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	if w := t.way.Load(); w != nil {
		w.following.Close()
	}
	t.alive.end()
	t.background.Wait()
	k := t.kernel.Load()
	if k != nil {
		k.Stop()
	}
	if p := t.packets.Load(); p != nil {
		p.Close()
	}
	if t.device != nil {
		t.host.closing <- struct{}{}
		t.device.Close()
		<-t.host.closing
	}
	if k != nil {
		k.Close() // after the link, whose end then does not wait for programs
	}
	if t.ownHost {
		t.host.Close()
	}
	t.claim.release() // last, when the name and the ends are free
}
