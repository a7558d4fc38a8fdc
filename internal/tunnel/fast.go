package tunnel

import (
	"fmt"
	"net/netip"

	"goipip/internal/fastpath"
	"goipip/internal/stats"
)

// fastHost is the fast path that tunnels of a Host share.
type fastHost struct {
	host   *fastpath.Host // nil until a tunnel wants it
	err    error          // why there is none
	logged bool           // err was
}

// fastPath returns the programs of the fast path, and loads them for the first tunnel that
// wants them.
func (h *Host) fastPath() (*fastpath.Host, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &h.fast
	if f.host != nil || f.err != nil {
		return f.host, f.err
	}
	if f.host, f.err = fastpath.Open(); f.err != nil {
		return nil, f.err
	}
	h.underlay.FollowAddresses(func(own []netip.Addr) {
		if err := f.host.SetAddresses(own); err != nil {
			h.log.Error("the fast path does not know all addresses of this host", "err", err)
		}
	})
	return f.host, nil
}

// joinFastPath makes the tunnel one whose packets the kernel may carry by itself, if cfg says
// so, or returns why that cannot be. It must be called in the tunnel's network namespace.
func (t *Tunnel) joinFastPath(cfg Config) (whyNot, err error) {
	if cfg.Fast == FastOff || t.kernel.Load() != nil {
		return nil, nil
	}
	host, err := t.host.fastPath()
	if err == nil {
		var k *fastpath.Tunnel
		if k, err = host.Add(t.device.Index()); err == nil {
			t.kernel.Store(k)
			if p := t.packets.Load(); p != nil {
				p.TellSoftErrors()
			}
			return nil, nil
		}
	}
	if cfg.Fast == FastOn {
		return nil, fmt.Errorf("fast path: %w", err)
	}
	t.host.logNoFastPath(err)
	return err, nil
}

// logNoFastPath says once why the fast path cannot be had.
func (h *Host) logNoFastPath(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.fast.logged {
		h.fast.logged = true
		h.log.Info("no fast path: goipip carries all packets itself", "why", err)
	}
}

// fastStats returns what the kernel has carried by itself.
func (t *Tunnel) fastStats() (s stats.Snapshot) {
	if k := t.kernel.Load(); k != nil {
		s = k.Stats()
	}
	return s
}

// SoftErrors leaves the packets that are to be sent to the engine while senders are to hear
// of ICMP errors.
func (t *Tunnel) SoftErrors(pending bool) {
	if k := t.kernel.Load(); k != nil {
		k.Hold(pending)
	}
}

// fastState is how a way stands to the fast path, under planning.
type fastState struct {
	cannot error  // why it cannot be had
	used   bool   // the kernel carries packets by itself
	why    string // not; empty also by choice
	failed error  // to attach to the path's device
	others string // programs of others, which would miss packets
}

// chooseFast has the kernel carry the packets by itself, or not. It needs planning.
func (w *way) chooseFast() {
	k := w.kernel.Load()
	before := w.fast
	w.fast.used, w.fast.why = false, ""
	switch {
	case w.cfg.Fast == FastOff:
	case k == nil:
		w.fast.why = w.fast.cannot.Error()
	default:
		w.fast.why = w.whyNotFast(w.situation.Load())
		if w.fast.why == "" {
			w.fast.used = k.Use(w.fastPlan())
			if !w.fast.used {
				w.fast.why = "it is not ready yet"
				w.following.Retry()
			}
		}
	}
	if k != nil && !w.fast.used {
		k.Stop()
	}
	switch {
	case w.fast.used && !before.used:
		w.log.Debug("fast path: the kernel carries packets by itself")
	case w.fast.why != before.why && w.fast.why != "":
		w.log.Debug("no fast path", "why", w.fast.why)
	}
}

// fastPlan is the latest Plan as the fast path has it. It needs planning.
func (w *way) fastPlan() fastpath.Plan {
	path := &w.situation.Load().path
	return fastpath.Plan{
		Outer:    w.next.Outer,
		MTU:      w.next.Path.MTU,
		Device:   path.Device,
		Gateway:  path.Gateway.Unmap(),
		Mark:     w.next.Route.Mark,
		SendOnly: w.next.Outer.AnyLocal, // another process may have a tunnel to the same end, from one address
		Inspect:  w.next.MaxMSS != 0,
	}
}

// whyNotFast returns why the kernel must not carry packets by itself; empty if it may. It
// needs planning.
func (w *way) whyNotFast(s *situation) string {
	switch p := &s.path; {
	case !s.here:
		return "the link is in another network namespace"
	case !s.up:
		return "the link is down"
	case !s.wired:
		return "the link has no carrier"
	case p.Reason != "":
		return p.Reason
	case s.loop:
		return "the route is a loop"
	case p.LocalMissing:
		return "the local address is gone"
	case p.Locked:
		return "the path's MTU is below net.ipv4.route.min_pmtu"
	case p.HopReason != "":
		return p.HopReason
	case !p.Gateway.Unmap().Is4():
		return "the next hop has an IPv6 address"
	case w.cfg.Fast == FastAuto && w.cfg.Transmit == TransmitRaw:
		return "the raw socket is to send"
	case w.cfg.Fast == FastAuto && p.Filtered != "":
		return p.Filtered
	case p.Observed != "":
		return p.Observed
	case w.fast.failed != nil:
		return w.fast.failed.Error()
	}
	return w.fast.others
}

// settleFast attaches the fast path to the device of the path, and looks for programs of
// others. It reports false if that is to be done again.
func (w *way) settleFast(s *situation) (done bool) {
	k := w.kernel.Load()
	if k == nil || w.cfg.Fast == FastOff || s.path.HopReason != "" || s.path.Device == 0 || s.loop || !s.here {
		return true
	}
	if !k.Attached(s.path.Device) {
		w.attachFast(k, s.path.Device)
		return true
	}
	var others string
	err := w.host.underlay.Do(func() error {
		others = k.Others()
		return nil
	})
	w.planning.Lock()
	defer w.planning.Unlock()
	w.fast.failed, w.fast.others = err, others
	if w.live {
		w.chooseFast()
	}
	return err == nil
}

// attachFast has the fast path attached, by a goroutine of its own: the kernel takes its time.
// Then the path is looked up again.
func (t *Tunnel) attachFast(k *fastpath.Tunnel, device int) {
	if t.attaching.Swap(true) {
		return
	}
	t.background.Go(func() {
		err := t.host.underlay.Do(func() error { return k.Attach(device) })
		t.attaching.Store(false)
		w := t.way.Load()
		if err == nil {
			w.following.Doubt()
			return
		}
		w.planning.Lock()
		defer w.planning.Unlock()
		if w.fast.failed == nil || w.fast.failed.Error() != err.Error() {
			w.log.Warn("no fast path", "err", err)
		}
		w.fast.failed = err
		w.following.Retry()
	})
}
