package stats_test

import (
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/stats"
)

// The counters of several loops add up.
func TestCounters_AddTo(t *testing.T) {
	var loops [2]stats.Counters
	var want stats.Direction
	for i := range loops {
		loops[i].Pass(i+1, 100)
		loops[i].Pass(0, 0)
		total := uint64(i + 1)
		for r := range stats.NumReasons {
			if r.Dropped() {
				loops[i].Drop(r, int(r))
				want.Drops[r] += uint64(r)
				total += uint64(r)
			}
		}
		want.Packets += uint64(i + 1)
		want.Bytes += 100
		if got := loops[i].Total(); got != total {
			t.Errorf("%d packets, want %d", got, total)
		}
	}
	var got stats.Direction
	for i := range loops {
		loops[i].AddTo(&got)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// One goroutine counts while others read (with -race).
func TestCounters_ReadMeanwhile(t *testing.T) {
	const packets = 10000
	var c stats.Counters
	var reader sync.WaitGroup
	reader.Go(func() {
		for last := uint64(0); last < packets; {
			var d stats.Direction
			c.AddTo(&d)
			if d.Drops[stats.Loop] < last {
				t.Errorf("%d packets after %d", d.Drops[stats.Loop], last)
				return
			}
			last = d.Drops[stats.Loop]
		}
	})
	for range packets {
		c.Pass(1, 20)
		c.Drop(stats.Loop, 1)
	}
	reader.Wait()
}

func TestCounters_Allocs(t *testing.T) {
	var c stats.Counters
	var d stats.Direction
	allocs := testing.AllocsPerRun(100, func() {
		c.Pass(2, 40)
		c.Drop(stats.BadECN, 3)
		d = stats.Direction{}
		c.AddTo(&d)
		for r, n := range d.Drops.All() {
			if r.String() == "" || n == 0 {
				t.Error("a drop without a name or a number")
			}
		}
	})
	if d.Packets != 202 || d.Drops[stats.BadECN] != 303 {
		t.Errorf("counted %+v", d)
	}
	if allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
}

func TestDrops_String(t *testing.T) {
	for want, d := range map[string]stats.Drops{
		"":                    {},
		"loop=3":              {stats.Loop: 3},
		"too_big=1 martian=2": {stats.Martian: 2, stats.TooBig: 1},
	} {
		if got := d.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
