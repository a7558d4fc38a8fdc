package engine

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"goipip/rawsock"
)

// Road is how outer packets leave this host.
type Road uint8

// The roads.
const (
	// RoadAuto is RoadPacket while no packet fares differently on it, and else
	// RoadRaw.
	RoadAuto Road = iota
	// RoadRaw is the raw socket: the kernel routes each packet by itself.
	RoadRaw
	// RoadPacket is a packet socket: packets go straight to the next hop, past the
	// local netfilter (OUTPUT, POSTROUTING, and what follows connections), IPsec, and
	// what a cgroup has for packets that leave. It needs an Ethernet, and a
	// neighbour there whose link-layer address is known; RoadRaw helps out.
	RoadPacket
)

// plainLinks are the kinds of links that packets leave through as they are, whoever
// sent them. Others look at the socket or the route.
var plainLinks = []string{"device", "veth", "vlan", "bond", "bridge", "macvlan", "dummy"}

// next is where the packet road leads.
type next struct {
	hop   rawsock.Hop
	stale bool // the kernel would ask the neighbour whether it is still there
}

// openPackets gives the senders the packet road, where that is not ruled out. Where
// this host has no packet sockets, RoadAuto becomes RoadRaw.
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

// chooseRoad has the senders take the packet road where it leads to the remote host,
// or else the raw one.
func (t *Tunnel) chooseRoad() {
	if t.cfg.Road == RoadRaw {
		return
	}
	t.looking.Lock()
	defer t.looking.Unlock()
	u := t.tx.underlay.Load()
	n, err := t.packetRoad(u)
	if err != nil {
		t.turn(nil, err)
		return
	}
	t.turn(&n.hop, nil)
	if sent := t.Stats().TX.Packets; n.stale && sent != t.sentStale {
		t.sentStale = sent
		t.host.probe(n.hop, u.gateway)
	}
}

// packetRoad returns where it leads along u. The error says why it is not to be
// taken.
func (t *Tunnel) packetRoad(u *underlay) (n next, err error) {
	if u.device == 0 || u.loop {
		return n, errors.New("no route")
	}
	if u.encap {
		return n, errors.New("the route encapsulates")
	}
	if !u.ethernet || !slices.Contains(plainLinks, u.kind) {
		return n, fmt.Errorf("the route leads into a link that is no plain Ethernet (%s)", u.kind)
	}
	if t.cfg.Road == RoadAuto {
		if err := t.host.filters(); err != nil {
			return n, err
		}
	}
	return t.host.neighbour(u.device, u.gateway)
}

// turn has the senders take the packet road to hop, or with nil the other one, for
// the reason why.
func (t *Tunnel) turn(hop *rawsock.Hop, why error) {
	if t.hop == nil && hop == nil || t.hop != nil && hop != nil && *t.hop == *hop {
		return
	}
	t.hop = hop
	for _, tx := range t.transmits {
		tx.sender.SetHop(hop)
	}
	if hop == nil {
		t.log.Debug("sending by raw socket", "why", why)
		return
	}
	t.log.Debug("sending by packet socket", "device", hop.Device, "next_hop", net.HardwareAddr(hop.Addr[:]))
}
