package encap_test

import (
	"sync"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// RFC 6864 §4: IDs of packets that may be fragmented differ within a packet's
// lifetime. So many in a row must differ; 65535 is all there are.
const distinctIDs = 60000

func TestT11_IDWithDF(t *testing.T) {
	e := newEncapsulator(t, encap.Outer{})
	for range 100 {
		if id := mustEncap(t, e, ipv4{id: 7}.bytes()).ID(); id != 0 {
			t.Fatalf("ID %#04x with DF set, want 0", id)
		}
	}
	e = newEncapsulator(t, encap.Outer{NoPMTUDisc: true})
	if id := mustEncap(t, e, ipv4{id: 7, df: true}.bytes()).ID(); id != 0 {
		t.Errorf("ID %#04x with DF inherited, want 0", id)
	}
}

func TestT11_IDWithoutDF(t *testing.T) {
	e := newEncapsulator(t, encap.Outer{NoPMTUDisc: true})
	inner := ipv4{}.bytes()
	withDF := ipv4{df: true}.bytes()
	last := make(map[uint16]int) // ID to the packet that had it
	for i := range 3 * distinctIDs {
		outer := mustEncap(t, e, inner)
		id := outer.ID()
		if before, ok := last[id]; ok && i-before < distinctIDs {
			t.Fatalf("packets %d and %d have the ID %#04x", before, i, id)
		}
		// raw_send_hdrinc replaces a zero by an ID of the kernel's own
		// sequence, which may repeat one of ours.
		if id == 0 {
			t.Fatalf("packet %d has the ID 0", i)
		}
		if headerSum(outer) != 0xffff {
			t.Fatalf("packet %d: outer header sums to %#04x", i, headerSum(outer))
		}
		last[id] = i
		if i%3 == 0 {
			mustEncap(t, e, withDF) // in between, as two applications do
		}
	}
}

// All queues of a tunnel share one sequence.
func TestT11_IDConcurrent(t *testing.T) {
	e := newEncapsulator(t, encap.Outer{NoPMTUDisc: true})
	const queues = 4
	ids := make([][]uint16, queues)
	var wg sync.WaitGroup
	for q := range queues {
		wg.Go(func() {
			inner, hdr := ipv4{}.bytes(), packet.IPv4(make([]byte, encap.HdrLen))
			for range distinctIDs / queues {
				if v := e.Encap(hdr, inner); v != stats.Deliver {
					t.Errorf("Encap = %v", v)
					return
				}
				ids[q] = append(ids[q], hdr.ID())
			}
		})
	}
	wg.Wait()

	seen := make(map[uint16]bool)
	for q := range ids {
		for _, id := range ids[q] {
			if seen[id] {
				t.Fatalf("the ID %#04x was given twice", id)
			}
			seen[id] = true
		}
	}
	if len(seen) != distinctIDs {
		t.Errorf("%d IDs, want %d", len(seen), distinctIDs)
	}
}
