package bench

import (
	"fmt"
	"testing"
	"time"

	"goipip/internal/netlab/labtest"
)

// pieceTimeout bounds the time for one piece of a load.
const pieceTimeout = 30 * time.Second

// BenchmarkTunnel puts each load on each peer. One operation is one piece. It names
// the peers that this machine cannot run, because nobody sees a benchmark that
// skips.
func BenchmarkTunnel(b *testing.B) {
	for _, p := range peers {
		if err := labtest.Missing(p.allNeeds()...); err != nil {
			fmt.Printf("# peer %s is left out: %v\n", p.name, err)
		}
	}
	for _, l := range loads {
		b.Run("load="+l.name, func(b *testing.B) {
			for _, p := range peers {
				b.Run("peer="+p.name, func(b *testing.B) { measure(b, l, p) })
			}
		})
	}
}

// BenchmarkCut does the same for streams whose superpackets no device takes: the kernel cuts
// those of a tunnel in software, as behind a NIC without tx-ipxip4-segmentation.
func BenchmarkCut(b *testing.B) {
	for _, l := range loads[:2] {
		b.Run("load=cut-"+l.name, func(b *testing.B) {
			for _, p := range peers {
				if p.name == "none" || p.name == "kernel" || p.name == "goipip" || p.name == "fast" {
					b.Run("peer="+p.name, func(b *testing.B) { measureOn(b, l, connect(b, p, withoutOffloads)) })
				}
			}
		})
	}
}

// measure reports what one load comes to over one peer.
func measure(b *testing.B, l load, p peer) { measureOn(b, l, connect(b, p)) }

func measureOn(b *testing.B, l load, n *network) {
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
	before := usageOf(b, n.processes)
	for b.Loop() {
		total.add(next(l.size))
	}
	total.report(b, usageOf(b, n.processes).since(before))
}
