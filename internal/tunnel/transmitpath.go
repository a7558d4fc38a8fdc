package tunnel

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"goipip/internal/underlay"
	"goipip/rawsock"
)

// TransmitPath is how outer packets leave this host.
type TransmitPath uint8

// The paths.
const (
	// TransmitAuto uses the packet socket while that changes nothing for any packet.
	TransmitAuto TransmitPath = iota
	// TransmitRaw is the raw socket: the kernel routes each packet by itself.
	TransmitRaw
	// TransmitPacket is a packet socket: packets go straight to the next hop, past the
	// local netfilter (OUTPUT, POSTROUTING, and connection tracking), IPsec, and
	// a cgroup's programs for outgoing packets. It needs an Ethernet, and a
	// neighbour there whose link-layer address is known; otherwise TransmitRaw is used.
	TransmitPacket
)

// transmitPaths are the words for them.
var transmitPaths = []string{TransmitAuto: "auto", TransmitRaw: "raw", TransmitPacket: "packet"}

// String returns the word for p that flags and keys have.
func (p TransmitPath) String() string { return transmitPaths[p] }

// MarshalText returns String.
func (p TransmitPath) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText returns.
func (p *TransmitPath) UnmarshalText(text []byte) error {
	i := slices.Index(transmitPaths, string(text))
	if i < 0 {
		return fmt.Errorf("tx %q: must be %s", text, strings.Join(transmitPaths, " or "))
	}
	*p = TransmitPath(i)
	return nil
}

// chooseTransmitPath replaces what cannot be had. Where this host has no packet sockets,
// TransmitAuto becomes TransmitRaw.
func (t *Tunnel) chooseTransmitPath(cfg *Config) error {
	why := t.engine.PacketSockets()
	switch {
	case why == nil || cfg.Transmit == TransmitRaw:
	case cfg.Transmit == TransmitPacket:
		return why
	default:
		cfg.Transmit = TransmitRaw
		t.log.Debug("sending by raw socket", "why", why)
	}
	return nil
}

// chooseHop returns the next hop where the path permits a packet socket, and nil for the
// raw one.
func (w *way) chooseHop(s *situation) *rawsock.Hop {
	if w.cfg.Transmit == TransmitRaw {
		return nil
	}
	reason := w.whyRaw(s)
	changed := reason != w.rawReason
	w.rawReason = reason
	if reason != "" {
		w.hop = nil
		if changed {
			w.log.Debug("sending by raw socket", "why", reason)
		}
		return nil
	}
	hop := rawsock.Hop(s.path.Hop)
	if w.hop == nil || *w.hop != hop {
		w.hop = &hop
		w.log.Debug("sending by packet socket", "device", hop.Device, "next_hop", net.HardwareAddr(hop.Addr[:]).String())
	}
	return w.hop
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
	case w.cfg.Transmit == TransmitAuto:
		return p.Filtered
	}
	return ""
}

var _ underlay.Follower = (*way)(nil)
