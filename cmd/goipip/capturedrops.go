//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"

	"goipip/internal/capture"
	"goipip/internal/daemon/control"
)

// dropSource is the packets that a tunnel drops, as its process tells of them.
type dropSource struct {
	client *control.Client
	name   string // of the tunnel
	outer  bool   // with outer headers, and only packets that have one
	filter capture.Filter
	lost   uint64
}

// newDropSource begins the capture. The caller closes the client.
func newDropSource(client *control.Client, name string, outer bool, filter capture.Filter) (source, error) {
	if err := client.CaptureDrops(name); err != nil {
		return nil, err
	}
	return &dropSource{client: client, name: name, outer: outer, filter: filter}, nil
}

func (s *dropSource) Interfaces() []string { return []string{s.name} }

func (s *dropSource) Run(ctx context.Context, packets chan<- capture.Packet) error {
	return s.client.ReadDrops(ctx, func(d control.Drop) error {
		s.lost += d.Lost
		p, ok := s.packet(d)
		if !ok || !s.filter.Matches(p.Data) {
			return nil
		}
		select {
		case packets <- p:
		default: // nobody takes what is captured: a terminal waits after Ctrl-S, say
			s.lost++
		}
		return nil
	})
}

// packet returns a dropped packet as it is to be shown, if it is.
func (s *dropSource) packet(d control.Drop) (capture.Packet, bool) {
	p := capture.Packet{
		Time:      d.Time,
		Interface: d.Tunnel,
		Out:       d.Direction == control.DropOut,
		Data:      d.Packet,
		Length:    d.Length,
		Comment:   dropComment(d),
	}
	outer := min(max(d.Outer, 0), len(d.Packet))
	if s.outer {
		return p, outer > 0
	}
	p.Data, p.Length = p.Data[outer:], p.Length-outer
	return p, d.Reason != ""
}

// dropComment says why a packet was dropped.
func dropComment(d control.Drop) string {
	rule := "rule "
	if strings.Contains(d.Rule, ",") {
		rule = "rules "
	}
	return fmt.Sprintf("goipip: dropped, %s (%s), tunnel %s, %s", d.Reason, rule+d.Rule, d.Tunnel, d.Direction)
}

// Lost returns how many dropped packets the process had no room for.
func (s *dropSource) Lost() uint64 { return s.lost }

func (s *dropSource) Close() {}
