// Package engine is a running tunnel: the one place where the TUN device, the
// encapsulation and the raw sockets meet.
//
// Each queue has two loops, one for each direction. A loop owns its queue, its
// socket and all its buffers, so the packets meet neither a lock nor a channel.
package engine

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"goipip/encap"
	"goipip/rawsock"
	"goipip/tun"
)

// ErrDeleted is how Run ends when somebody deleted the link.
var ErrDeleted = tun.ErrDeleted

// Tunnel is a tunnel whose link exists.
type Tunnel struct {
	cfg       Config
	log       *slog.Logger
	host      *host
	device    *tun.Device
	decap     *encap.Decapsulator
	mtu       atomic.Int64 // of the link, in bytes; a person may change it
	transmits []*transmit
	receives  []*receive
	connected int // so many receivers, the first ones
}

// Open makes a tunnel of a valid cfg: its sockets, and its link, which is up when
// Open returns. Everything is made in the network namespace of the calling
// thread. What is unusual, but no reason to give up, goes to log as a warning.
//
// The caller either calls Run, which closes the tunnel, or Close.
func Open(cfg Config, log *slog.Logger) (*Tunnel, error) {
	t := &Tunnel{cfg: cfg, log: log}
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tunnel) open() (err error) {
	if t.host, err = openHost(); err != nil {
		return err
	}
	enc, err := encap.NewEncapsulator(encap.Outer{
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
	if t.decap, err = encap.NewDecapsulator(t.cfg.Local, t.cfg.Remote); err != nil {
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
		if err := t.addQueue(i, queue, enc); err != nil {
			return err
		}
	}
	mtu := t.cfg.MTU
	if mtu == 0 {
		mtu = t.host.tunnelMTU(t.cfg)
	}
	t.mtu.Store(int64(mtu))
	if err := t.device.Setup(tun.Link{
		MTU:     mtu,
		Remote:  t.cfg.Remote,
		Address: t.cfg.Address,
		Peer:    t.cfg.Peer,
	}); err != nil {
		return err
	}
	t.look()
	t.warnUnreachable()
	return nil
}

// addQueue opens the sockets of one queue.
func (t *Tunnel) addQueue(i int, queue *tun.Queue, enc *encap.Encapsulator) error {
	sock := rawsock.Config{Local: t.cfg.Local, Remote: t.cfg.Remote, Device: t.cfg.Device}
	receiver, err := rawsock.NewReceiver(sock)
	if err != nil {
		return err
	}
	t.receives = append(t.receives, &receive{
		receiver: receiver,
		decap:    t.decap,
		queue:    queue,
		mtu:      &t.mtu,
	})
	if t.cfg.Queues > 1 {
		if err := receiver.SetShare(i, t.cfg.Queues); err != nil {
			return err
		}
	}
	tx, err := newTransmit(queue, enc, sock)
	if err != nil {
		return err
	}
	t.transmits = append(t.transmits, tx)
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
	wg.Go(t.watch)
	wg.Go(func() { t.reconnect(running) })

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
	if t.device != nil {
		t.device.Close()
	}
}
