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

// R2, O11: the tunnel with both addresses comes before that of any local address.
func TestTable_R2_O11_AnyLocal(t *testing.T) {
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, last}) }
	var table table
	anyone, exact, other := new(Tunnel), new(Tunnel), new(Tunnel)
	table.add(rawsock.Pair{Remote: addr(9)}, anyone)
	table.add(rawsock.Pair{Local: addr(1), Remote: addr(9)}, exact)
	table.add(rawsock.Pair{Local: addr(1), Remote: addr(8)}, other)
	check := func(local, remote byte, want *Tunnel) {
		t.Helper()
		k := keyOf(rawsock.Pair{Local: addr(local), Remote: addr(remote)})
		if got := table.lookUp(k); got != want {
			t.Errorf("from %d to %d: found %p, want %p", remote, local, got, want)
		}
	}
	check(1, 9, exact)
	check(2, 9, anyone)
	check(1, 8, other)
	check(2, 8, nil)
	check(9, 1, nil)
	table.remove(rawsock.Pair{Local: addr(1), Remote: addr(9)}, exact)
	check(1, 9, anyone)
	table.remove(rawsock.Pair{Remote: addr(9)}, anyone)
	check(1, 9, nil)
	check(1, 8, other)
}

func TestTable_Allocs(t *testing.T) {
	var table table
	tunnel, p := new(Tunnel), rawsock.Pair{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.2")}
	table.add(p, tunnel)
	wildcard, other := new(Tunnel), rawsock.Pair{Local: p.Local, Remote: p.Local}
	table.add(rawsock.Pair{Remote: p.Local}, wildcard)
	found := 0
	if allocs := testing.AllocsPerRun(100, func() {
		if table.lookUp(keyOf(p)) == tunnel && table.lookUp(keyOf(other)) == wildcard {
			found++
		}
	}); allocs != 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
	if found < 100 {
		t.Errorf("found %d times", found)
	}
}
