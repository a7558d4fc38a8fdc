package encap_test

import (
	"sync"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// distinctIDs is how many consecutive IDs must differ. RFC 6864 §4 wants no
// repetition within a packet's lifetime; there are 65535.
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
		// raw_send_hdrinc replaces a zero by an ID of the kernel's own sequence,
		// which may repeat one of ours.
		if id == 0 {
			t.Fatalf("packet %d has the ID 0", i)
		}
		if headerSum(outer) != 0xffff {
			t.Fatalf("packet %d: outer header sums to %#04x", i, headerSum(outer))
		}
		last[id] = i
		if i%3 == 0 {
			mustEncap(t, e, withDF) // takes no ID
		}
	}
}

// All workers share one sequence of a peer.
func TestT11_IDConcurrent(t *testing.T) {
	e := newEncapsulator(t, encap.Outer{NoPMTUDisc: true})
	checkConcurrentIDs(t, func() *encap.Encapsulator { return e })
}

// Each worker may hold another Encapsulator of the peer, old or new.
func TestT11_IDConcurrentOfEncapsulators(t *testing.T) {
	ids := encap.NewIDs()
	checkConcurrentIDs(t, func() *encap.Encapsulator {
		return newEncapsulatorOf(t, encap.Outer{NoPMTUDisc: true}, ids, nil)
	})
}

// checkConcurrentIDs fails if two packets of concurrent workers have the same ID. It
// calls next once for each worker.
func checkConcurrentIDs(t *testing.T, next func() *encap.Encapsulator) {
	t.Helper()
	const workers = 4
	ids := make([][]uint16, workers)
	var wg sync.WaitGroup
	for w := range workers {
		e := next()
		wg.Go(func() {
			inner, hdr := ipv4{}.bytes(), packet.IPv4(make([]byte, encap.IPIP.HdrLen))
			for range distinctIDs / workers {
				if v := e.Encap(hdr, inner); v != stats.Deliver {
					t.Errorf("Encap = %v", v)
					return
				}
				ids[w] = append(ids[w], hdr.ID())
			}
		})
	}
	wg.Wait()

	seen := make(map[uint16]bool)
	for w := range ids {
		for _, id := range ids[w] {
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

// A change of configuration makes a new Encapsulator, which continues the sequence,
// also for headers that ClearDF changes.
func TestT11_IDsOutliveTheEncapsulator(t *testing.T) {
	ids := encap.NewIDs()
	inner := ipv4{}.bytes()
	var last uint16
	for i := range 3 * 0xffff {
		o := encap.Outer{NoPMTUDisc: i%2 == 0, TTL: uint8(i), TOS: uint8(i)}
		e := newEncapsulatorOf(t, o, ids, nil)
		outer := mustEncap(t, e, inner)
		if !o.NoPMTUDisc {
			e.ClearDF(outer)
		}
		want := last + 1
		if want == 0 {
			want = 1
		}
		if id := outer.ID(); i > 0 && id != want {
			t.Fatalf("packet %d has the ID %#04x after %#04x", i, id, last)
		}
		last = outer.ID()
	}
}

// After a restart, a peer does not get the IDs that it got last.
func TestT11_IDsStartAtRandom(t *testing.T) {
	first := make(map[uint16]bool)
	for range 16 {
		first[mustEncap(t, newEncapsulator(t, encap.Outer{NoPMTUDisc: true}), ipv4{}.bytes()).ID()] = true
	}
	if len(first) < 8 {
		t.Errorf("16 sequences start at %d different IDs", len(first))
	}
}
