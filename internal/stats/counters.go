package stats

import (
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
)

// Counters count the packets of one loop in one direction. One goroutine counts, and
// any goroutine may read at the same time. The zero value has counted nothing.
type Counters struct {
	packets, bytes atomic.Uint64
	drops          [NumReasons]atomic.Uint64
}

// Pass counts packets that were passed on, and their bytes from the inner IP header on.
func (c *Counters) Pass(packets, bytes int) {
	c.packets.Add(uint64(packets))
	c.bytes.Add(uint64(bytes))
}

// Drop counts n packets that were dropped for the reason r.
func (c *Counters) Drop(r Reason, n int) { c.drops[r].Add(uint64(n)) }

// Total returns how many packets were counted, passed on or dropped.
func (c *Counters) Total() uint64 {
	n := c.packets.Load()
	for r := range c.drops {
		n += c.drops[r].Load()
	}
	return n
}

// AddPassedTo adds the packets that were passed on to d.
func (c *Counters) AddPassedTo(d *Direction) {
	d.Packets += c.packets.Load()
	d.Bytes += c.bytes.Load()
}

// AddTo adds what has been counted to d.
func (c *Counters) AddTo(d *Direction) {
	c.AddPassedTo(d)
	for r := range c.drops {
		d.Drops[r] += c.drops[r].Load()
	}
}

// Snapshot is what a tunnel has counted in both directions: TX from the link to the
// remote end, RX the way back.
type Snapshot struct {
	TX, RX Direction
}

// Direction is the sum of counters of one direction. Each packet is counted once, as
// passed or as dropped.
type Direction struct {
	Packets uint64 // passed on (T13, R6); what the link handed over as one counts as one
	Bytes   uint64 // of these, from the inner IP header on
	Drops   Drops
}

// Add adds what o has counted.
func (s *Snapshot) Add(o Snapshot) {
	s.TX.add(&o.TX)
	s.RX.add(&o.RX)
}

func (d *Direction) add(o *Direction) {
	d.Packets += o.Packets
	d.Bytes += o.Bytes
	for r, n := range o.Drops {
		d.Drops[r] += n
	}
}

// Drops are numbers of dropped packets by reason (G5).
type Drops [NumReasons]uint64

// All returns the reasons for which packets were dropped, in their order, and how many.
func (d *Drops) All() iter.Seq2[Reason, uint64] {
	return func(yield func(Reason, uint64) bool) {
		for r, n := range d {
			if n > 0 && !yield(Reason(r), n) {
				return
			}
		}
	}
}

// String returns the reasons for which packets were dropped, as "loop=1 too_big=2".
func (d Drops) String() string {
	var parts []string
	for r, n := range d.All() {
		parts = append(parts, fmt.Sprintf("%v=%d", r, n))
	}
	return strings.Join(parts, " ")
}
