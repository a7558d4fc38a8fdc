package engine

import (
	"errors"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/underlay"
)

// Settle does what a change of the path calls for and may take a moment: it binds
// sockets to their device, connects them, sets the link's MTU, and logs.
func (w *way) Settle() {
	w.settling.Lock()
	defer w.settling.Unlock()
	s := w.situation.Load()
	w.bind(s.path.Bound)
	w.connect()
	w.logTrouble(s)
	if s.here && s.path.Device != 0 && !s.loop {
		w.followMTU(s.path)
	}
}

// bind binds the sockets that send to a device (O6), which may have come again under
// another index.
func (w *way) bind(device int) {
	if device == 0 || device == w.bound {
		return
	}
	var err error
	for _, tx := range w.transmits {
		err = errors.Join(err, tx.sender.SetDevice(device))
	}
	for _, s := range w.connecting() {
		err = errors.Join(err, s.SetDevice(device))
	}
	switch {
	case err == nil:
		w.bound = device
	case w.unbound != device:
		w.unbound = device
		w.log.Warn("cannot bind to the device that packets leave by: they are dropped", "device", w.cfg.Device, "err", err)
	}
}

// socket is one that receives.
type socket interface {
	Connect() error
	SetDevice(index int) error
}

// connecting returns the sockets that receive, in the order in which they connect.
func (w *way) connecting() []socket {
	var sockets []socket
	if w.guard != nil {
		sockets = append(sockets, w.guard)
	}
	for _, rx := range w.receives {
		sockets = append(sockets, rx.receiver)
	}
	return sockets
}

// connect connects the sockets that receive, which takes a route. Without that the
// tunnel works too, but the kernel copies the packets of every other ipip tunnel
// to its sockets.
func (w *way) connect() {
	for _, s := range w.connecting()[w.connected:] {
		if s.Connect() != nil {
			return
		}
		w.connected++
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
// TUN link do not show.
func (w *way) logTrouble(s *situation) {
	trouble := s.trouble(w.cfg.Device)
	if trouble == w.trouble || !w.troubleLog.Allow() {
		return
	}
	w.trouble = trouble
	if trouble == "" {
		w.log.Info("packets can leave again", "remote", w.cfg.Remote)
		return
	}
	args := []any{"local", w.cfg.Local, "remote", w.cfg.Remote}
	if w.cfg.Device != "" {
		args = append(args, "device", w.cfg.Device)
	}
	if trouble == troubleRoute {
		args = append(args, "err", s.path.Reason)
	}
	w.log.Warn(trouble, args...)
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
	if l, ok := w.host.Link(p.Bound); ok {
		return mtuOver(l.MTU)
	}
	return mtuOver(ethernet)
}

// mtuOver is the MTU of a tunnel over a device of an MTU, both in bytes.
func mtuOver(device int) int {
	return max(min(device, packet.IPv4MaxLen)-encap.HdrLen, MinMTU)
}

// followMTU makes the link's MTU follow the route's device, unless it was set otherwise
// (O2).
func (w *way) followMTU(p underlay.Path) {
	mtu := mtuOver(p.DeviceMTU)
	if w.cfg.MTU != 0 || w.MTU() != w.derivedMTU || mtu == w.derivedMTU {
		return
	}
	if err := w.host.SetMTU(w.device.Index(), mtu); err != nil {
		if w.refusedMTU != mtu {
			w.refusedMTU = mtu
			w.log.Warn("cannot set the mtu of the link", "mtu", mtu, "err", err)
		}
		return
	}
	w.log.Info("the mtu of the link follows the route to the remote address", "mtu", mtu)
	w.derivedMTU = mtu
}
