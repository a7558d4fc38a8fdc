package daemon

import (
	"bytes"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/tunnel"
)

// drops are those of a tunnel, for a client.
type drops struct {
	name string
	tap  *tunnel.Tap
	lost uint64 // as the client knows
}

// Drops captures what the tunnel called name drops, from now on.
func (d *Daemon) Drops(name string) (control.Drops, error) {
	m, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return &drops{name: name, tap: m.tunnel.Tap()}, nil
}

// Next waits for a packet. One goroutine at a time may call it.
func (d *drops) Next() (control.Drop, bool) {
	p, ok := d.tap.Next()
	next := control.Drop{Time: time.Now(), Tunnel: d.name}
	lost := d.tap.Lost()
	next.Lost, d.lost = lost-d.lost, lost
	if !ok {
		return next, next.Lost > 0
	}
	next.Time = p.Time
	next.Direction = control.DropIn
	if p.Sent {
		next.Direction = control.DropOut
	}
	next.Reason, next.Rule = p.Reason.String(), p.Reason.RuleOf(p.Sent)
	next.Packet, next.Outer, next.Length = bytes.Clone(p.Packet), p.Outer, p.Length
	d.tap.Free(p)
	return next, true
}

// Close ends the capture.
func (d *drops) Close() { d.tap.Close() }
