package tunnel

import (
	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/underlay"
)

// Settle does what a change of the path calls for and may take a moment: it connects
// sockets, sets the link's MTU, and logs.
func (w *way) Settle() {
	w.settling.Lock()
	defer w.settling.Unlock()
	w.settle()
}

// settle needs settling.
func (w *way) settle() {
	s := w.situation.Load()
	settled := w.engine.Connect() == nil
	settled = w.logTrouble(s) && settled
	settled = w.warn(s) && settled
	settled = w.settleFast(s) && settled
	if s.here && s.path.Device != 0 && !s.loop {
		settled = w.followMTU(s.path) && settled
	}
	if !settled {
		w.following.Retry()
	}
}

// Reasons for which no packet leaves. Each is logged when it begins.
const (
	troubleLocal  = "the local address is not on this host: no packets pass until it is (ip address add)"
	troubleRoute  = "no route to the remote address: packets are dropped until there is one (ip route add)"
	troubleDevice = "the device that packets leave by is gone: they are dropped until there is one of that name"
	troubleLoop   = "the route to the remote address leads into the tunnel itself: all packets are dropped until it does not (ip route add)"
)

func (s *situation) trouble(device string) string {
	switch {
	case device != "" && s.path.Bound == 0:
		return troubleDevice
	case s.path.LocalMissing:
		return troubleLocal
	case s.path.Reason != "":
		return troubleRoute
	case s.loop:
		return troubleLoop
	}
	return ""
}

// logTrouble logs why no packet leaves, and when they do again: what the counters of a
// TUN link do not show. It reports false if there were too many lines.
func (w *way) logTrouble(s *situation) (done bool) {
	trouble := s.trouble(w.cfg.Device)
	if trouble == w.trouble {
		return true
	}
	if !w.troubleLog.Allow() {
		return false
	}
	w.trouble = trouble
	if trouble == "" {
		w.log.Info("packets can leave again", "remote", w.cfg.Remote)
		return true
	}
	args := []any{"local", w.cfg.LocalText(), "remote", w.cfg.Remote}
	if w.cfg.Device != "" {
		args = append(args, "device", w.cfg.Device)
	}
	if trouble == troubleRoute {
		args = append(args, "err", s.path.Reason)
	}
	w.log.Warn(trouble, args...)
	return true
}

// tunnelMTU is the MTU that Linux gives a tunnel (O2; ip_tunnel_bind_dev in
// net/ipv4/ip_tunnel.c): that of the device which the route to the remote end
// leaves by, or of the configured one, or an Ethernet's, less the outer header.
func (w *way) tunnelMTU() int {
	const ethernet = 1500
	p := w.situation.Load().path
	if p.Device != 0 {
		return mtuOver(p.DeviceMTU)
	}
	if p.Reason == "" { // by a rule that chooses by protocol
		return mtuOver(p.MTU)
	}
	if l, ok := w.host.underlay.Link(p.Bound); ok {
		return mtuOver(l.MTU)
	}
	return mtuOver(ethernet)
}

// mtuOver is the MTU of a tunnel over a device of an MTU, both in bytes.
func mtuOver(device int) int {
	return max(min(device, packet.IPv4MaxLen)-encap.IPIP.HdrLen, MinMTU)
}

// followMTU makes the link's MTU follow the route's device, unless it was set otherwise
// (O2). It reports false if the kernel refuses.
func (w *way) followMTU(p underlay.Path) (done bool) {
	mtu := mtuOver(p.DeviceMTU)
	if w.cfg.MTU != 0 || w.MTU() != w.derivedMTU || mtu == w.derivedMTU {
		return true
	}
	if err := w.host.underlay.SetMTU(w.device.Index(), mtu); err != nil {
		if w.refusedMTU != mtu {
			w.refusedMTU = mtu
			w.log.Warn("cannot set the mtu of the link", "mtu", mtu, "err", err)
		}
		return false
	}
	w.log.Info("the mtu of the link follows the route to the remote address", "mtu", mtu)
	w.derivedMTU, w.link.MTU = mtu, mtu
	return true
}
