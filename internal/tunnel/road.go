package engine

import (
	"net"

	"goipip/internal/underlay"
	"goipip/rawsock"
)

// Road is how outer packets leave this host.
type Road uint8

// The roads.
const (
	// RoadAuto uses the packet socket while that changes nothing for any packet.
	RoadAuto Road = iota
	// RoadRaw is the raw socket: the kernel routes each packet by itself.
	RoadRaw
	// RoadPacket is a packet socket: packets go straight to the next hop, past the
	// local netfilter (OUTPUT, POSTROUTING, and connection tracking), IPsec, and
	// a cgroup's programs for outgoing packets. It needs an Ethernet, and a
	// neighbour there whose link-layer address is known; otherwise RoadRaw is used.
	RoadPacket
)

// openPackets gives the senders their packet sockets, where those are not ruled out.
// Where this host has none, RoadAuto becomes RoadRaw.
func (t *Tunnel) openPackets() error {
	if t.cfg.Road == RoadRaw {
		return nil
	}
	for _, tx := range t.transmits {
		err := tx.sender.EnableHops()
		if err != nil && t.cfg.Road == RoadPacket {
			return err
		}
		if err != nil {
			t.cfg.Road = RoadRaw
			t.log.Debug("sending by raw socket", "why", err)
			return nil
		}
	}
	return nil
}

// chooseHop has the senders use a packet socket where the path permits it, or else the
// raw one.
func (w *way) chooseHop(s *situation) {
	if w.cfg.Road == RoadRaw {
		return
	}
	reason := w.whyRaw(s)
	changed := reason != w.rawReason
	w.rawReason = reason
	if reason != "" {
		w.setHop(nil)
		if changed {
			w.log.Debug("sending by raw socket", "why", reason)
		}
		return
	}
	hop := rawsock.Hop(s.path.Hop)
	if w.hop == nil || *w.hop != hop {
		w.setHop(&hop)
		w.log.Debug("sending by packet socket", "device", hop.Device, "next_hop", net.HardwareAddr(hop.Addr[:]).String())
	}
}

// whyRaw returns why the raw socket must send; empty if it need not.
func (w *way) whyRaw(s *situation) string {
	switch p := &s.path; {
	case p.Reason != "":
		return p.Reason
	case s.loop:
		return "the route is a loop"
	case p.HopReason != "":
		return p.HopReason
	case w.cfg.Road == RoadAuto:
		return p.Filtered
	}
	return ""
}

func (w *way) setHop(hop *rawsock.Hop) {
	w.hop = hop
	for _, tx := range w.transmits {
		tx.sender.SetHop(hop)
	}
}

var _ underlay.Follower = (*way)(nil)
