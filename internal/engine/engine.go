// Package engine is a running tunnel: the one place where the TUN device, the
// encapsulation and the raw sockets meet.
//
// Each queue has two loops, one for each direction. A loop owns its queue, its
// socket and all its buffers, so the packets meet neither a lock nor a channel.
package engine

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"goipip/encap"
	"goipip/internal/packet"
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
	cfg    Config
	log    *slog.Logger
	claim  *net.UnixConn
	host   *host
	device *tun.Device
	mtu    atomic.Int64 // of the link, in bytes; a person may change it
	decap  *encap.Decapsulator
	tx     shared

	transmits []*transmit
	receives  []*receive
	guard     *rawsock.Guard
	heard     atomic.Uint64 // ICMP errors, handled
	relayed   *tun.Writer   // for ICMP errors that the guard hears of
	unmerged  sync.Once     // the kernel refuses merged packets, as warned of

	// The watcher's. Under looking, freshPath shares what look and lookAtPath use.
	looking    sync.Mutex
	changed    chan struct{} // a link or an address changed
	doubt      chan struct{} // the path MTU may have changed
	reported   atomic.Pointer[reportedMTU]
	derivedMTU int          // of the link, as it was set last, in bytes
	here       bool         // the link is in the namespace that it was made in
	foreign    bool         // the local address is not on this host
	connected  int          // so many receivers, the first ones
	tunnel4    bool         // the module was loaded when last looked
	disturbed  bool         // something on this host answers ipip packets, as warned of
	hop        *rawsock.Hop // where the packet road leads that is taken
	sentStale  uint64       // packets, when the hop's neighbour was asked for last
}

// Open makes a tunnel of a valid cfg: its sockets, and its link, which is up when
// Open returns. Everything is made in the network namespace of the calling
// thread. What is unusual, but no reason to give up, goes to log as a warning.
//
// The caller either calls Run, which closes the tunnel, or Close.
func Open(cfg Config, log *slog.Logger) (*Tunnel, error) {
	t := &Tunnel{
		cfg:     cfg,
		log:     log,
		changed: make(chan struct{}, 1),
		doubt:   make(chan struct{}, 1),
	}
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
	if t.host, err = openHost(t.cfg.Remote); err != nil {
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
	for i, queue := range t.device.Queues() {
		if err := t.addQueue(i, queue); err != nil {
			return err
		}
	}
	if err := t.openPackets(); err != nil {
		return err
	}
	t.relayed = t.device.Queues()[0].NewWriter()
	sock, err := t.sockets()
	if err != nil {
		return err
	}
	if t.guard, err = rawsock.NewGuard(sock); err != nil {
		return err
	}
	return t.setup()
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
	t.tx.underlay.Store(&underlay{mtu: packet.IPv4MaxLen})
	t.tx.limit = newICMPLimit()
	t.tx.tooBig = func() { wake(t.doubt) }
	t.tx.freshPath = t.freshPath
	t.decap, err = encap.NewDecapsulator(t.cfg.Local, t.cfg.Remote)
	return err
}

// sockets returns what the tunnel's sockets have in common.
func (t *Tunnel) sockets() (cfg rawsock.Config, err error) {
	cfg = rawsock.Config{Local: t.cfg.Local, Remote: t.cfg.Remote, TOS: t.cfg.routeTOS()}
	cfg.Device, err = t.host.deviceIndex(t.cfg.Device)
	return cfg, err
}

// addQueue opens the sockets of one queue.
func (t *Tunnel) addQueue(i int, queue *tun.Queue) error {
	sock, err := t.sockets()
	if err != nil {
		return err
	}
	receiver, err := rawsock.NewReceiver(sock, i, t.cfg.Queues)
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
	tx, err := newTransmit(queue, &t.tx, sock)
	if err != nil {
		return err
	}
	t.transmits = append(t.transmits, tx)
	return nil
}

// setup brings the link up, now that everything behind it is there.
func (t *Tunnel) setup() error {
	mtu := t.cfg.MTU
	if mtu == 0 {
		mtu = t.host.tunnelMTU(t.cfg)
		t.derivedMTU = mtu
	}
	t.mtu.Store(int64(mtu))
	if err := t.device.Setup(tun.Link{
		MTU:     mtu,
		Remote:  t.cfg.Remote,
		Alias:   t.cfg.describe(),
		Address: t.cfg.Address,
		Peer:    t.cfg.Peer,
	}); err != nil {
		return err
	}
	t.look()
	t.lookAtPath()
	t.chooseRoad()
	t.warnUnreachable()
	return nil
}

// Name returns the name that the link was created with.
func (t *Tunnel) Name() string { return t.device.Name() }

// MTU returns the link's MTU in bytes, as last seen.
func (t *Tunnel) MTU() int { return int(t.mtu.Load()) }

// Stats returns the counters of all queues together.
func (t *Tunnel) Stats() Stats {
	s := Stats{TX: Direction{Drops: map[string]uint64{}}, RX: Direction{Drops: map[string]uint64{}}}
	for _, tx := range t.transmits {
		tx.count.addTo(&s.TX)
	}
	for _, rx := range t.receives {
		rx.count.addTo(&s.RX)
	}
	return s
}

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
	wg.Go(func() { t.watch(running) })
	wg.Go(t.listen)
	wg.Go(func() { t.readErrors(running) })

	<-running.Done()
	t.stop()
	wg.Wait()
	t.host.close()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(running)
}

// Close removes the link of a tunnel that is not going to Run.
func (t *Tunnel) Close() {
	t.stop()
	if t.host != nil {
		t.host.close()
	}
}

// stop closes all that a goroutine of Run might wait on, which ends it.
func (t *Tunnel) stop() {
	if t.host != nil {
		t.host.stop()
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
	if t.device != nil {
		t.device.Close()
	}
	if t.claim != nil {
		t.claim.Close() // last, when the name and the ends are free
	}
}
