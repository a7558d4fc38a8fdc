package engine

import (
	"sync/atomic"

	"goipip/internal/stats"
)

// Reasons for which the kernel dropped packets before the tunnel saw them.
const (
	reasonQueueFull  = "queue_full"  // sent: the link's queue of txqueuelen packets was full
	reasonRcvbufFull = "rcvbuf_full" // received: the socket's buffer was full
)

// Stats is a snapshot of a tunnel's counters.
type Stats struct {
	TX, RX Direction
}

// Direction counts the packets of one direction: TX from the link to the remote
// end, RX the way back. Each packet is counted once, as passed or as dropped.
type Direction struct {
	Packets uint64            // passed on (T13, R6); what the link handed over as one counts as one
	Bytes   uint64            // of these, from the inner IP header on
	Drops   map[string]uint64 // by reason (G5); a reason without packets is missing
}

// LinkStats are the counters that Linux keeps of a link, under the names of struct
// rtnl_link_stats64, as the ipip module would count (T, R).
type LinkStats struct {
	RXPackets, RXBytes, TXPackets, TXBytes uint64

	RXErrors       uint64
	RXLengthErrors uint64 // among RXErrors (R4)
	RXFrameErrors  uint64 // among RXErrors (R5)
	RXDropped      uint64

	TXErrors        uint64
	TXCarrierErrors uint64 // among TXErrors (T3)
	Collisions      uint64 // among TXErrors (T4); with what Linux would have let pass (G4)
	TXDropped       uint64
}

// Stats returns the counters of all queues together.
func (t *Tunnel) Stats() Stats {
	s := Stats{TX: Direction{Drops: map[string]uint64{}}, RX: Direction{Drops: map[string]uint64{}}}
	for _, tx := range t.transmits {
		tx.count.addTo(&s.TX)
	}
	for _, rx := range t.receives {
		rx.count.addTo(&s.RX)
		s.RX.drop(reasonRcvbufFull, rx.receiver.Drops())
	}
	s.TX.drop(reasonQueueFull, t.device.QueueDrops())
	return s
}

// Link returns the counters as Linux has them. What Linux would have passed on, or
// does not count on the link, is among the dropped ones, but for G4's loops.
func (s Stats) Link() LinkStats {
	tx, rx := s.TX.Drops, s.RX.Drops
	l := LinkStats{
		RXPackets: s.RX.Packets, RXBytes: s.RX.Bytes,
		TXPackets: s.TX.Packets, TXBytes: s.TX.Bytes,

		RXLengthErrors:  rx[stats.Malformed.String()],
		RXFrameErrors:   rx[stats.BadECN.String()],
		TXCarrierErrors: tx[stats.NoRoute.String()],
		Collisions:      tx[stats.Loop.String()],
	}
	l.RXErrors = l.RXLengthErrors + l.RXFrameErrors
	l.TXErrors = l.TXCarrierErrors + l.Collisions +
		tx[stats.NotIPv4.String()] + tx[stats.Malformed.String()] + tx[stats.TooDeep.String()] + tx[stats.TooBig.String()]
	l.RXDropped = sum(rx) - l.RXErrors
	l.TXDropped = sum(tx) - l.TXErrors
	return l
}

func sum(drops map[string]uint64) (n uint64) {
	for _, d := range drops {
		n += d
	}
	return n
}

// transmitted counts what one transmit loop does. The loop adds, anybody reads.
type transmitted struct {
	packets, bytes atomic.Uint64
	verdicts       [stats.NumReasons]atomic.Uint64
	refusals       [stats.NumReasons]atomic.Uint64
}

// received counts what one receive loop does.
type received struct {
	packets, bytes atomic.Uint64
	verdicts       [stats.NumReasons]atomic.Uint64
	linkDown       atomic.Uint64
	refused        atomic.Uint64
}

func (t *transmitted) addTo(d *Direction) {
	d.Packets += t.packets.Load()
	d.Bytes += t.bytes.Load()
	for v := range t.verdicts {
		d.drop(stats.Reason(v).String(), t.verdicts[v].Load())
	}
	for r := range t.refusals {
		d.drop(stats.Reason(r).String(), t.refusals[r].Load())
	}
}

func (r *received) addTo(d *Direction) {
	d.Packets += r.packets.Load()
	d.Bytes += r.bytes.Load()
	for v := range r.verdicts {
		d.drop(stats.Reason(v).String(), r.verdicts[v].Load())
	}
	d.drop("link_down", r.linkDown.Load())
	d.drop("link_refused", r.refused.Load())
}

func (d *Direction) drop(reason string, n uint64) {
	if n > 0 {
		d.Drops[reason] += n
	}
}
