// Package engine is the data plane: it carries the packets of any number of tunnels of one
// network namespace, by workers whose number goes by cores.
//
// A worker is two loops. Its out loop owns one queue of each tunnel's TUN device and one
// rawsock.Sender, its in loop one rawsock.Receiver for all tunnels. A loop owns its
// buffers, so packets meet neither a lock nor a channel. Loops wait for packets and for
// nothing else: what they go by is a tunnel's Plan, which never changes, behind an atomic
// pointer. No loop writes a log or asks netlink; what a packet calls for beyond the data
// plane they tell the tunnel's Owner.
package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"goipip/encap"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/time/rate"
)

// Config describes an Engine.
type Config struct {
	Workers int        // 1 or more
	Local   netip.Addr // local address of most tunnels, whose packets the raw sockets send at the least cost; the zero Addr for any
	Log     *slog.Logger
}

// Engine carries packets until Close.
type Engine struct {
	log    *slog.Logger // must not block
	local  netip.Addr
	host   encap.Host // this host's addresses
	outs   []*out
	ins    []*in
	guard  *rawsock.Guard // nil where receivers need none
	errors *rawsock.ErrorSocket
	packet error // why packet sockets cannot be had
	side   side

	table   table
	replies *icmpLimit
	handled atomic.Uint64 // ICMP errors of all time
	refused sync.Once     // the kernel refuses merged packets, as logged

	ctx     context.Context
	stop    context.CancelFunc
	start   sync.Once
	started atomic.Bool
	running sync.WaitGroup

	mu      sync.Mutex
	tunnels map[*Tunnel]struct{}
	only    *Tunnel // the one tunnel that the sockets are connected for; nil for none
	failed  error   // by which a loop ended
}

// Open opens an Engine's sockets, in the network namespace of the calling thread. Its loops
// start with the first tunnel.
func Open(cfg Config) (*Engine, error) {
	e := &Engine{
		log:     cfg.Log,
		local:   cfg.Local,
		replies: newICMPLimit(),
		tunnels: map[*Tunnel]struct{}{},
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	if err := e.open(cfg.Workers); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (e *Engine) run() {
	for _, o := range e.outs {
		e.running.Go(o.run)
	}
	for _, in := range e.ins {
		e.running.Go(in.run)
	}
	e.running.Go(e.hearICMP)
	e.started.Store(true)
}

func (e *Engine) open(workers int) (err error) {
	if e.errors, err = rawsock.NewErrorSocket(); err != nil {
		return err
	}
	for i := range workers {
		receiver, err := rawsock.NewReceiver(i, workers)
		if err != nil {
			return err
		}
		e.ins = append(e.ins, &in{
			worker:    i,
			engine:    e,
			receiver:  receiver,
			writer:    tun.NewWriter(),
			coalescer: encap.NewCoalescer(rawsock.BatchSize),
			logLimit:  rate.NewLimiter(logPerSecond, logBurst),
		})
		o, err := newOut(e)
		if err != nil {
			return err
		}
		e.outs = append(e.outs, o)
		if e.packet == nil {
			e.packet = o.sender.EnableHops()
		}
	}
	if why := e.ins[0].receiver.NeedsGuard(); why != nil {
		e.log.Debug("receiving with a guard, which costs some speed", "why", why)
		e.guard, err = rawsock.NewGuard()
	}
	return err
}

// PacketSockets returns nil if a Plan may have a Hop, or else why it may not.
func (e *Engine) PacketSockets() error { return e.packet }

// SetAddresses replaces the addresses of this host (G2, T14).
func (e *Engine) SetAddresses(own []netip.Addr) { e.host.Set(own) }

// ICMPErrors returns how many ICMP errors have been handled.
func (e *Engine) ICMPErrors() uint64 { return e.handled.Load() }

// Unattributed returns how many packets the kernel dropped for want of room on a receiver
// without telling which tunnel they were for. There are none where filters can count.
func (e *Engine) Unattributed() (n uint64) {
	for _, in := range e.ins {
		n += in.receiver.Drops()
	}
	return n
}

// Err returns the error by which a loop ended, after which no packets pass; nil while all of
// them run.
func (e *Engine) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// Connect connects the sockets that receive, if there is one tunnel only: the kernel then
// does not offer them the packets of other programs' tunnels. It takes a route, so it is
// to be called again when there may be one; without a change it does nothing.
func (e *Engine) Connect() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.only == nil {
		return nil
	}
	p := e.only.plan.Load()
	if e.guard != nil {
		if err := e.guard.Connect(p.pair(), p.Route); err != nil {
			return err
		}
	}
	for _, in := range e.ins {
		if err := in.receiver.Connect(p.Route); err != nil {
			return err
		}
	}
	return nil
}

// fail tells all tunnels of an error of a socket that they share.
func (e *Engine) fail(err error) {
	if errors.Is(err, os.ErrClosed) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = err
	for t := range e.tunnels {
		t.end(err)
	}
}

// limitSockets has the sockets serve just the tunnels that there are. It needs mu.
func (e *Engine) limitSockets() error {
	e.only = nil
	if len(e.tunnels) == 1 {
		for t := range e.tunnels {
			e.only = t
		}
	}
	if e.only == nil {
		if e.guard != nil {
			if err := e.guard.Disconnect(); err != nil {
				return err
			}
		}
		return e.errors.SetPair(nil)
	}
	pair := e.only.plan.Load().pair()
	return e.errors.SetPair(&pair)
}

// Close ends the loops and closes the sockets. Tunnels are to be closed before.
func (e *Engine) Close() {
	e.stop()
	e.side.close()
	for _, o := range e.outs {
		o.close()
	}
	for _, in := range e.ins {
		in.receiver.Close()
	}
	if e.errors != nil {
		e.errors.Close()
	}
	e.running.Wait()
	for _, o := range e.outs {
		o.finish()
	}
	if e.guard != nil {
		e.guard.Close()
	}
}
