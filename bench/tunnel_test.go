package bench

import (
	"testing"
	"time"
)

// pieceTimeout bounds the time for one piece of a load.
const pieceTimeout = 30 * time.Second

// BenchmarkTunnel puts each load on each peer. One operation is one piece.
func BenchmarkTunnel(b *testing.B) {
	for _, l := range loads {
		b.Run("load="+l.name, func(b *testing.B) {
			for _, p := range peers {
				b.Run("peer="+p.name, func(b *testing.B) { measure(b, l, p) })
			}
		})
	}
}

// measure reports what one load comes to over one peer.
func measure(b *testing.B, l load, p peer) {
	n := connect(b, p)
	move := l.open(b, n.a, n.b)
	next := func(size int) tally {
		t, err := move(size, time.Now().Add(pieceTimeout))
		if err != nil {
			b.Fatal(err)
		}
		return t
	}
	next(l.size / 8) // TCP's windows, caches, the runtime's threads

	var total tally
	before := cpuTime(b, n.processes)
	for b.Loop() {
		total.add(next(l.size))
	}
	total.report(b, cpuTime(b, n.processes)-before)
}
