package engine

import (
	"sync/atomic"

	"goipip/encap"
	"goipip/rawsock"
)

// Stats is a snapshot of a tunnel's counters.
type Stats struct {
	TX, RX Direction
}

// Direction counts the packets of one direction: TX from the link to the remote
// end, RX the way back. Each packet is counted once, as passed or as dropped.
type Direction struct {
	Packets uint64            // passed on (T13, R6)
	Bytes   uint64            // of these, from the inner IP header on
	Drops   map[string]uint64 // by reason (G5); a reason without packets is missing
}

// transmitted counts what one transmit loop does. The loop adds, anybody reads.
type transmitted struct {
	packets, bytes atomic.Uint64
	verdicts       [encap.NumVerdicts]atomic.Uint64
	refusals       [rawsock.NumRefusals]atomic.Uint64
}

// received counts what one receive loop does.
type received struct {
	packets, bytes atomic.Uint64
	verdicts       [encap.NumVerdicts]atomic.Uint64
	linkDown       atomic.Uint64
	refused        atomic.Uint64
}

func (t *transmitted) addTo(d *Direction) {
	d.Packets += t.packets.Load()
	d.Bytes += t.bytes.Load()
	for v := range t.verdicts {
		d.drop(encap.Verdict(v).String(), &t.verdicts[v])
	}
	for r := range t.refusals {
		d.drop(rawsock.Refusal(r).String(), &t.refusals[r])
	}
}

func (r *received) addTo(d *Direction) {
	d.Packets += r.packets.Load()
	d.Bytes += r.bytes.Load()
	for v := range r.verdicts {
		d.drop(encap.Verdict(v).String(), &r.verdicts[v])
	}
	d.drop("link_down", &r.linkDown)
	d.drop("link_refused", &r.refused)
}

func (d *Direction) drop(reason string, n *atomic.Uint64) {
	if n := n.Load(); n > 0 {
		d.Drops[reason] += n
	}
}
