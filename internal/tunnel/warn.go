package tunnel

import (
	"fmt"
	"syscall"

	"goipip/encap"
)

// warnings are what keeps a tunnel from being of use although packets leave.
type warnings struct {
	own       bool // the remote address is of this host
	broadcast bool // the remote address is of no one host
	fits      int  // the longest packet that the path takes whole, in bytes; 0 if the link's MTU is no longer
}

// warn logs a warning when its cause begins. While there is no path, nothing is known. It
// reports false if there were too many lines. It needs settling.
func (w *way) warn(s *situation) (done bool) {
	if s.path.Reason != "" {
		return true
	}
	now := warnings{
		own:       s.path.RouteType == syscall.RTN_LOCAL,
		broadcast: s.path.RouteType == syscall.RTN_BROADCAST || s.path.RouteType == syscall.RTN_MULTICAST,
	}
	if most := s.path.MTU - encap.IPIP.HdrLen; w.cfg.MTU > most {
		now.fits = most
	}
	before := w.warned
	begun := now.own && !before.own || now.broadcast && !before.broadcast || now.fits != 0 && before.fits == 0
	if begun && !w.troubleLog.Allow() {
		return false
	}
	w.warned = now
	if now.own && !before.own {
		w.log.Warn("the remote address is this host's own: packets to it come back to this host: give the other end's address",
			"remote", w.cfg.Remote)
	}
	if now.broadcast && !before.broadcast {
		w.log.Warn("the remote address is a broadcast address: the kernel refuses packets to it: give the address of one host",
			"remote", w.cfg.Remote)
	}
	if now.fits != 0 && before.fits == 0 {
		w.log.Warn(fmt.Sprintf("packets above %d bytes are fragmented, or refused with DF: give an mtu of %[1]d or less", now.fits),
			"mtu", w.cfg.MTU)
	}
	return true
}
