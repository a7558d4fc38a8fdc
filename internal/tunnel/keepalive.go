package tunnel

import (
	"cmp"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"goipip/internal/engine"
)

// alive keeps a link's carrier as its tunnel's remote end is: off while that is silent.
type alive struct {
	echo   *engine.Keepalive // nil until there is a keepalive
	silent atomic.Pointer[time.Time]

	// Of the goroutine that sends echo requests. The Tunnel's changing guards these.
	stop    chan struct{} // nil if there is none
	running sync.WaitGroup
}

// prepareKeepalive makes what a Plan of cfg needs. It must be called in the tunnel's network
// namespace.
func (t *Tunnel) prepareKeepalive(cfg Config) error {
	if cfg.Keepalive == 0 || t.alive.echo != nil {
		return nil
	}
	if err := t.engine.EnableSend(); err != nil {
		return err
	}
	t.alive.echo = engine.NewKeepalive()
	return nil
}

// keepAlive has echo requests sent as cfg says, which is in force.
func (t *Tunnel) keepAlive(cfg Config) {
	a := &t.alive
	a.end()
	if cfg.Keepalive == 0 {
		if a.silent.Swap(nil) != nil {
			t.setCarrier(true)
		}
		return
	}
	k := &keepalive{Tunnel: t, cfg: cfg, heardAt: time.Now()}
	k.local = cfg.Address.Addr()
	if !k.local.IsValid() {
		k.local = cfg.Addresses[0].Addr()
	}
	k.peer = cfg.Peer
	if !k.peer.IsValid() {
		k.peer = cfg.Remote
	}
	stop := make(chan struct{})
	a.stop = stop
	a.running.Go(func() { k.run(stop) })
}

// end ends the sending of echo requests.
func (a *alive) end() {
	if a.stop != nil {
		close(a.stop)
		a.running.Wait()
		a.stop = nil
	}
}

// keepalive looks every cfg.Keepalive whether a packet has come from the remote end, and asks
// for one if not.
type keepalive struct {
	*Tunnel
	cfg         Config
	local, peer netip.Addr // of echo requests

	asked   bool   // an echo request was sent at the last look
	lost    int    // how many were lost in succession
	count   uint16 // of echo requests
	fast    uint64 // packets that the kernel has received by itself
	heardAt time.Time
}

func (k *keepalive) run(stop <-chan struct{}) {
	tick := time.NewTicker(time.Duration(k.cfg.Keepalive))
	defer tick.Stop()
	k.fast = k.fastStats().RX.Packets
	for k.look(); ; {
		select {
		case <-stop:
			return
		case <-k.alive.echo.First():
			k.heard()
		case <-tick.C:
			k.look()
		}
	}
}

func (k *keepalive) look() {
	fast := k.fastStats().RX.Packets
	heard := k.alive.echo.Heard() || fast != k.fast
	k.fast = fast
	switch s := k.way.Load().situation.Load(); {
	case heard:
		k.heard()
		return
	case s.here && !s.up: // which a person has done
		k.asked, k.lost = false, 0
		return
	case k.asked:
		k.lost++
	}
	if k.lost >= cmp.Or(k.cfg.KeepaliveRetries, DefaultKeepaliveRetries) && k.alive.silent.Load() == nil {
		at := k.heardAt
		k.alive.silent.Store(&at)
		k.log.Warn("the remote end does not answer: the link's carrier is off until a packet comes from there",
			"remote", k.cfg.Remote, "lost", k.lost)
		k.setCarrier(false)
	}
	var b [engine.EchoLen]byte
	k.count++
	// One that cannot be sent is lost too: the tunnel's trouble tells why.
	_ = k.packets.Load().Send(k.alive.echo.Echo(b[:], k.local, k.peer, k.count))
	k.asked = true
}

// SilentSince returns when the last packet came from a remote end that does not answer, to the
// precision of Config.Keepalive; the zero Time while it answers, and without a keepalive. Any
// goroutine may call it.
func (t *Tunnel) SilentSince() time.Time {
	if at := t.alive.silent.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// heard takes note of a packet from the remote end.
func (k *keepalive) heard() {
	k.asked, k.lost, k.heardAt = false, 0, time.Now()
	if k.alive.silent.Swap(nil) != nil {
		k.log.Info("the remote end answers: the link's carrier is on again", "remote", k.cfg.Remote)
		k.setCarrier(true)
	}
}

func (t *Tunnel) setCarrier(on bool) {
	if err := t.device.SetCarrier(on); err != nil {
		t.log.Warn("cannot set the carrier of the link", "err", err)
	}
}
