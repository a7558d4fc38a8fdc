package engine

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// The table finds what a map would, by the addresses of a received packet.
func TestTable(t *testing.T) {
	var (
		table table
		want  = map[rawsock.Pair]*Tunnel{}
		r     = rand.New(rand.NewPCG(1, 2))
	)
	addr := func() netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(4)), byte(r.IntN(8))})
	}
	for range 20_000 {
		p := rawsock.Pair{Local: addr(), Remote: addr()}
		switch tunnel := new(Tunnel); r.IntN(3) {
		case 0:
			table.add(p, tunnel)
			want[p] = tunnel
		case 1:
			if want[p] != nil {
				table.remove(p, want[p])
				delete(want, p)
			}
		case 2:
			table.remove(p, tunnel) // which is not there
		}
		q := rawsock.Pair{Local: addr(), Remote: addr()}
		outer := make(packet.IPv4, packet.IPv4HdrLen)
		outer.SetSource(q.Remote.As4())
		outer.SetDestination(q.Local.As4())
		if got := table.find(key(outer.Addresses())); got != want[q] {
			t.Fatalf("%v: found %p, want %p", q, got, want[q])
		}
	}
	if len(want) < 100 {
		t.Errorf("only %d pairs in the table", len(want))
	}
}

func TestTable_Allocs(t *testing.T) {
	var table table
	tunnel, p := new(Tunnel), rawsock.Pair{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.2")}
	table.add(p, tunnel)
	found := 0
	if allocs := testing.AllocsPerRun(100, func() {
		if table.find(keyOf(p)) == tunnel {
			found++
		}
	}); allocs != 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
	if found < 100 {
		t.Errorf("found %d times", found)
	}
}
