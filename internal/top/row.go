package top

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"
)

// memory is how long the reason for drops is remembered.
const memory = span * time.Second

// key names a tunnel. There are several of one name only where links are in other network namespaces.
type key struct {
	name string
	n    int // of this name, in the order of processes
}

// row is a tunnel: its status, what happened to it between the last two, and the minute before.
type row struct {
	key
	*control.TunnelStatus
	process control.Process
	at      time.Time // when the status came

	in, out direction
	drops   float64 // a second, in both directions
	// reason is why most packets were dropped when some were last, at droppedAt.
	reason    string
	droppedAt time.Time
}

// direction is what passes in one of them.
type direction struct {
	bits, packets float64            // a second
	drops         map[string]float64 // a second, by reason; those that grow
	minute        history            // of bits a second
}

// next returns the row for the status that follows r's. r is nil for a tunnel that was not there before.
func (r *row) next(k key, t *control.TunnelStatus, p control.Process, at time.Time) *row {
	n := &row{key: k, TunnelStatus: t, process: p, at: at}
	from, before := at.Add(-time.Second), &control.TunnelStatus{RX: t.RX, TX: t.TX}
	known := false
	if r != nil {
		n.in.minute, n.out.minute = r.in.minute, r.out.minute
		n.reason, n.droppedAt = r.reason, r.droppedAt
		if known = same(r.process, p) && r.Since.Equal(t.Since); known {
			from, before = r.at, r.TunnelStatus
		}
	}
	elapsed := at.Sub(from).Seconds()
	if elapsed <= 0 {
		elapsed, known = 1, false
	}
	n.in.pass(before.RX, t.RX, elapsed, known)
	n.out.pass(before.TX, t.TX, elapsed, known)
	n.in.minute.add(from, at, n.in.bits)
	n.out.minute.add(from, at, n.out.bits)

	reasons := make(map[string]float64)
	for _, d := range []direction{n.in, n.out} {
		for reason, rate := range d.drops {
			reasons[reason] += rate
			n.drops += rate
		}
	}
	if list := byRate(reasons); list != nil {
		n.reason, n.droppedAt = list[0], at
	} else if at.Sub(n.droppedAt) >= memory {
		n.reason = ""
	}
	return n
}

// same reports whether a and b are one process. In a container each has the same id.
func same(a, b control.Process) bool { return a.PID == b.PID && a.Started.Equal(b.Started) }

// pass sets the rates of a direction from its counters before and now. If those before are not known, they are the
// daemon's.
func (d *direction) pass(before, now control.Traffic, elapsed float64, known bool) {
	d.bits, d.packets = float64(now.ByteRate)*8, float64(now.PacketRate)
	if !known {
		return
	}
	d.bits = grown(before.Bytes, now.Bytes) * 8 / elapsed
	d.packets = grown(before.Packets, now.Packets) / elapsed
	for reason, n := range now.Drops {
		if n := grown(before.Drops[reason], n); n > 0 {
			if d.drops == nil {
				d.drops = make(map[string]float64)
			}
			d.drops[reason] = n / elapsed
		}
	}
}

// grown is by how much a counter has grown; never less than 0.
func grown(before, now uint64) float64 { return float64(max(before, now) - before) }

// byRate returns the reasons, that of most drops first.
func byRate(drops map[string]float64) []string {
	return slices.SortedFunc(maps.Keys(drops), func(a, b string) int {
		return cmp.Or(cmp.Compare(drops[b], drops[a]), cmp.Compare(a, b))
	})
}

// minute returns both directions' rates of the last minute in at most so many columns.
func (r *row) minute(now time.Time, columns int) []float64 {
	bars := r.in.minute.bars(now, columns)
	for i, out := range r.out.minute.bars(now, columns) {
		if bars[i] < 0 {
			bars[i] = out
		} else if out > 0 {
			bars[i] += out
		}
	}
	return bars
}

func (r *row) state() show.State { return show.StateOf(r.TunnelStatus) }

// path is what sends most packets: the kernel by itself, or a socket.
func (r *row) path() string {
	if r.FastPath != nil && r.FastPath.Used {
		return "fast"
	}
	return cmp.Or(r.Underlay.Transmit, "-")
}
