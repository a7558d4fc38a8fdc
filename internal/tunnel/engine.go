// Package engine is a running tunnel: the one place where the TUN device, the
// encapsulation and the raw sockets meet.
//
// Each queue has two loops, one for each direction. A loop owns its queue, its
// socket and all its buffers, so the packets meet neither a lock nor a channel. Loops
// wait for packets and for nothing else: what they must know of the host they find
// behind an atomic pointer, and no loop writes a log.
package engine

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/underlay"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/time/rate"
)

// ErrDeleted is how Run ends when somebody deleted the link.
var ErrDeleted = tun.ErrDeleted

// Limits of log lines about packets: ten in five seconds, as net_ratelimit in the
// kernel.
const (
	logPerSecond = 2
	logBurst     = 10
)

// Tunnel is a tunnel whose link exists.
type Tunnel struct {
	cfg         Config
	log         *slog.Logger // must not block: loops use it
	claim       *claimed
	host        *underlay.Watcher
	ownHost     bool // host is not shared with other tunnels
	boundDevice int  // index of cfg.Device at Open
	device      *tun.Device
	mtu         atomic.Int64 // of the link, in bytes; a person may change it
	decap       *encap.Decapsulator
	tx          shared
	way         *way

	transmits []*transmit
	receives  []*receive
	guard     *rawsock.Guard // nil where receivers need none
	errors    *rawsock.ErrorSocket
	icmp      icmpErrors
	unmerged  sync.Once // the kernel refuses merged packets, as warned of
}

// Open makes a tunnel of a valid cfg: its sockets, and its link, which is up when
// Open returns. Everything is made in the network namespace of the calling
// thread. Problems that do not keep the tunnel from running are logged as warnings. The
// tunnel's loops log too, so log must not block.
//
// The caller either calls Run, which closes the tunnel, or Close.
func Open(cfg Config, log *slog.Logger) (*Tunnel, error) {
	host, err := underlay.Open(log)
	if err != nil {
		return nil, err
	}
	t, err := OpenOn(host, cfg, log)
	if err != nil {
		host.Close()
		return nil, err
	}
	t.ownHost = true
	return t, nil
}

// OpenOn is Open for one of several tunnels of a network namespace, which host watches.
// The caller closes host after the tunnels.
func OpenOn(host *underlay.Watcher, cfg Config, log *slog.Logger) (*Tunnel, error) {
	t := &Tunnel{cfg: cfg, log: log, host: host}
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tunnel) open() (err error) {
	if t.claim, err = claim(t.cfg); err != nil {
		return err
	}
	if err := t.claim.missing; err != nil {
		t.log.Warn("cannot lock this pair of addresses: a second goipip with the same ends would start too, and each would "+
			"deliver every packet: make /run writable, or set XDG_RUNTIME_DIR to a directory of this user", "err", err)
	}
	if err := t.findDevice(); err != nil {
		return err
	}
	if err := t.prepare(); err != nil {
		return err
	}
	if t.device, err = tun.Open(tun.Config{
		Name:    t.cfg.Name,
		Queues:  t.cfg.Queues,
		Offload: !t.cfg.NoOffload,
	}); err != nil {
		return err
	}
	t.log = t.log.With("tunnel", t.Name())
	t.claim.setName(t.Name())
	if t.errors, err = rawsock.NewErrorSocket(t.sockets()); err != nil {
		return err
	}
	for i, queue := range t.device.Queues() {
		if err := t.addQueue(i, queue); err != nil {
			return err
		}
	}
	if err := t.openGuard(); err != nil {
		return err
	}
	if err := t.openPackets(); err != nil {
		return err
	}
	return t.setup()
}

// findDevice finds the device that packets leave by (O6).
func (t *Tunnel) findDevice() error {
	if t.cfg.Device == "" {
		return nil
	}
	l, ok := t.host.LinkByName(t.cfg.Device)
	if !ok {
		return fmt.Errorf("device %q: %w: choose one of those here (ip link)", t.cfg.Device, syscall.ENODEV)
	}
	t.boundDevice = l.Index
	return nil
}

// prepare makes what needs no descriptor.
func (t *Tunnel) prepare() (err error) {
	t.tx.encap, err = encap.NewEncapsulator(encap.Outer{
		Local:      t.cfg.Local,
		Remote:     t.cfg.Remote,
		TTL:        t.cfg.TTL,
		TOS:        t.cfg.TOS,
		InheritTOS: t.cfg.InheritTOS,
		NoPMTUDisc: t.cfg.NoPMTUDisc,
	})
	if err != nil {
		return err
	}
	t.tx.path.Store(&path{mtu: packet.IPv4MaxLen})
	t.tx.limit = newICMPLimit()
	t.decap, err = encap.NewDecapsulator(t.cfg.Local, t.cfg.Remote)
	return err
}

// sockets is what the tunnel's sockets have in common.
func (t *Tunnel) sockets() rawsock.Config {
	return rawsock.Config{
		Local:  t.cfg.Local,
		Remote: t.cfg.Remote,
		Device: t.boundDevice,
		TOS:    t.cfg.routeTOS(),
		Mark:   t.cfg.Mark,
	}
}

// addQueue opens the sockets of one queue.
func (t *Tunnel) addQueue(i int, queue *tun.Queue) error {
	receiver, err := rawsock.NewReceiver(t.sockets(), i, t.cfg.Queues)
	if err != nil {
		return err
	}
	coalescer := encap.NewCoalescer(rawsock.BatchSize, t.device.USO())
	if !queue.VNet() {
		coalescer.Stop()
	}
	t.receives = append(t.receives, &receive{
		receiver:  receiver,
		decap:     t.decap,
		coalescer: coalescer,
		unmerged:  &t.unmerged,
		queue:     queue,
		mtu:       &t.mtu,
		log:       t.log,
		logLimit:  rate.NewLimiter(logPerSecond, logBurst),
	})
	tx, err := newTransmit(queue, &t.tx, t.sockets())
	if err != nil {
		return err
	}
	t.transmits = append(t.transmits, tx)
	return nil
}

// openGuard opens one where a receiver needs it.
func (t *Tunnel) openGuard() (err error) {
	for _, rx := range t.receives {
		if why := rx.receiver.NeedsGuard(); why != nil {
			t.log.Debug("receiving with a guard, which costs some speed", "why", why)
			t.guard, err = rawsock.NewGuard(t.sockets())
			return err
		}
	}
	return nil
}

// setup brings the link up, now that everything behind it is there.
func (t *Tunnel) setup() error {
	t.way = newWay(t)
	t.tx.byDevice = t.cfg.Device != ""
	t.tx.kernelMTU = t.receives[0].receiver.PathMTU
	t.icmp.replies = t.device.Queues()[0].NewWriter()
	if err := t.bringUp(); err != nil {
		return err
	}
	t.way.Settle()
	return nil
}

// bringUp follows the underlay, and sets the link up by what that says. Until it is up
// nothing is settled.
func (t *Tunnel) bringUp() error {
	t.way.settling.Lock()
	defer t.way.settling.Unlock()
	t.way.following = t.host.Follow(t.way.query(), t.way)
	t.tx.doubt = t.way.following.Doubt
	mtu := t.cfg.MTU
	if mtu == 0 {
		mtu = t.way.tunnelMTU()
		t.way.derivedMTU = mtu
	}
	t.mtu.Store(int64(mtu))
	return t.device.Setup(tun.Link{
		MTU:     mtu,
		Remote:  t.cfg.Remote,
		Alias:   t.cfg.describe(),
		Address: t.cfg.Address,
		Peer:    t.cfg.Peer,

		Addresses: t.cfg.Addresses,
		Routes:    t.cfg.Routes,
	})
}

// Name returns the name that the link was created with.
func (t *Tunnel) Name() string { return t.device.Name() }

// MTU returns the link's MTU in bytes, as last seen.
func (t *Tunnel) MTU() int { return int(t.mtu.Load()) }

// Run carries packets until ctx is done, and returns nil; or until the link is
// deleted, and returns ErrDeleted; or until something ends one of the loops,
// and returns that. It leaves nothing of the tunnel behind in any case.
func (t *Tunnel) Run(ctx context.Context) error {
	running, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	loop := func(run func() error) {
		wg.Go(func() { cancel(run()) })
	}
	for _, tx := range t.transmits {
		loop(tx.run)
	}
	for _, rx := range t.receives {
		loop(rx.run)
	}
	loop(func() error { return t.hearICMP(running) })

	<-running.Done()
	t.Close()
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(running)
}

// Close ends the loops and removes the link. It is for a tunnel that is not going to
// Run.
func (t *Tunnel) Close() {
	if t.way != nil && t.way.following != nil {
		t.way.following.Close()
	}
	if t.ownHost {
		t.host.Close()
	}
	for _, rx := range t.receives {
		rx.receiver.Close()
	}
	for _, tx := range t.transmits {
		tx.sender.Close()
	}
	if t.guard != nil {
		t.guard.Close()
	}
	if t.errors != nil {
		t.errors.Close()
	}
	if t.device != nil {
		t.device.Close()
	}
	t.claim.release() // last, when the name and the ends are free
}
