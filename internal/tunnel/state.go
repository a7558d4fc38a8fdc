package tunnel

import (
	"net"
	"net/netip"
	"time"
)

// State is where a tunnel stands.
type State struct {
	Config Config // in force; its Name and Device are present names
	Index  int    // of the link
	Up     bool   // the link is
	Away   bool   // the link is in another network namespace; Up and MTU are as last seen
	MTU    int    // of the link, in bytes

	Trouble    string // why no packet leaves; empty if packets do
	SoftErrors int    // how many of the next senders are notified of an ICMP error (T8)
	ICMPErrors uint64 // about the tunnel's packets, of all time

	Source       netip.Addr       // of outer packets
	Device       string           // that they leave by; empty if not known
	DeviceMTU    int              // of that device, in bytes
	NextHop      netip.Addr       // on that device
	LinkAddr     net.HardwareAddr // of the next hop; nil where the raw socket sends
	WhyRaw       string           // why the raw socket sends; empty where the packet socket does, or by choice
	PathMTU      int              // of outer packets, in bytes; 0 without a path
	MaxMSS       int              // that SYNs may offer, in bytes; 0 for any
	Fast         bool             // the kernel carries packets by itself
	WhyNotFast   string           // why the kernel does not; empty where it does, or by choice
	FastSent     uint64           // packets that the kernel has carried by itself
	FastReceived uint64

	SilentSince time.Time // the remote end, so that the link's carrier is off (keepalive); zero if it is not

	Reported bool // PathMTU comes from a router's ICMP error
}

// Trouble returns why no packet leaves; empty if packets do. Any goroutine may call it.
func (t *Tunnel) Trouble() string {
	w := t.way.Load()
	return w.situation.Load().trouble(w.cfg.Device)
}

// State returns the tunnel's state. Any goroutine may call it.
func (t *Tunnel) State() State {
	w := t.way.Load()
	p := w.situation.Load()
	w.planning.Lock()
	plan, fast := *w.next, w.fast
	w.planning.Unlock()

	s := State{
		Config:     w.cfg,
		Index:      t.device.Index(),
		Away:       !p.here,
		MTU:        t.MTU(),
		Trouble:    p.trouble(w.cfg.Device),
		SoftErrors: t.packets.Load().SoftErrors(),
		ICMPErrors: t.packets.Load().ICMPErrors(),
		Source:     plan.Outer.Local,
		MaxMSS:     int(plan.MaxMSS),
		DeviceMTU:  p.path.DeviceMTU,
		NextHop:    p.path.Gateway,
		Fast:       fast.used,
		WhyNotFast: fast.why,
		Reported:   p.path.Reported != 0,
	}
	if p.path.Reason == "" {
		s.PathMTU = p.path.MTU
	}
	carried := t.fastStats()
	s.FastSent, s.FastReceived = carried.TX.Packets, carried.RX.Packets
	s.Config.Name = t.Name()
	s.SilentSince = t.SilentSince()
	if l, ok := t.host.underlay.Link(s.Index); ok {
		s.Config.Name, s.Up = l.Name, l.Up
	}
	if l, ok := t.host.underlay.Link(p.path.Bound); ok {
		s.Config.Device = l.Name
	}
	if l, ok := t.host.underlay.Link(p.path.Device); ok {
		s.Device = l.Name
	}
	if plan.Route.Hop != nil {
		s.LinkAddr = plan.Route.Hop.Addr[:]
	} else if w.cfg.Transmit != TransmitRaw {
		s.WhyRaw = w.whyRaw(p)
	}
	return s
}
