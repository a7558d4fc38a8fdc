package top

import (
	"math"
	"slices"
	"testing"
	"time"

	"goipip/internal/daemon/control"
)

func TestHistory(t *testing.T) {
	at := func(seconds float64) time.Time {
		return start.Add(time.Duration(math.Round(seconds*1000)) * time.Millisecond)
	}
	const no = unknown
	for name, c := range map[string]struct {
		samples [][3]float64 // from, to, rate
		now     float64
		columns int
		want    []float64 // the last ones; before them nothing is known
	}{
		"nothing":            {nil, 5, 60, nil},
		"each second":        {[][3]float64{{0, 1, 10}, {1, 2, 20}, {2, 3, 0}}, 3, 60, []float64{10, 20, 0}},
		"jitter":             {[][3]float64{{0.01, 0.99, 10}, {0.99, 2.01, 20}, {2.01, 2.99, 30}}, 2.99, 60, []float64{10, 20, 30}},
		"every other second": {[][3]float64{{0, 2, 10}, {2, 4, 20}}, 4, 60, []float64{10, 10, 20, 20}},
		"ten a second":       {[][3]float64{{0.1, 0.2, 10}, {0.2, 0.3, 30}, {0.3, 0.4, 20}}, 0.9, 60, []float64{30}},
		"a gap":              {[][3]float64{{0, 1, 10}, {3, 4, 20}}, 4, 60, []float64{10, no, no, 20}},
		"a gap of minutes":   {[][3]float64{{0, 1, 10}, {300, 301, 20}}, 301, 60, []float64{20}},
		"a clock set back":   {[][3]float64{{9, 10, 10}, {5, 6, 20}}, 10, 60, []float64{20, no, no, no, 10}},
		"the minute is over": {[][3]float64{{0, 1, 10}, {1, 2, 20}}, 61, 60, append([]float64{20}, slices.Repeat([]float64{no}, 59)...)},
		"in 20 columns":      {[][3]float64{{0, 2, 10}, {2, 3, 20}, {3, 4, 5}}, 4, 20, []float64{10, 20}},
		"in 7, of nine each": {[][3]float64{{0, 60, 10}}, 60, 7, slices.Repeat([]float64{10}, 7)},
		"in one column":      {[][3]float64{{0, 1, 10}}, 1, 1, []float64{10}},
	} {
		t.Run(name, func(t *testing.T) {
			var h history
			for _, s := range c.samples {
				h.add(at(s[0]), at(s[1]), s[2])
			}
			got := h.bars(at(c.now), c.columns)
			if len(got) > c.columns {
				t.Fatalf("%d columns, of %d at most", len(got), c.columns)
			}
			if before := len(got) - len(c.want); before < 0 || !slices.Equal(got[before:], c.want) || slices.ContainsFunc(got[:before], func(r float64) bool { return r != no }) {
				t.Errorf("got %v, want %v at the end", got, c.want)
			}
		})
	}
}

// TestHistoryMoves looks at one peak while it becomes older: its bar moves to the left, and is always the same.
func TestHistoryMoves(t *testing.T) {
	var h history
	last := -1
	for second := range span {
		now := start.Add(time.Duration(second) * time.Second)
		rate := 1.0
		if second == 0 {
			rate = 100
		}
		h.add(now.Add(-time.Second), now, rate)
		bars := h.bars(now, 20)
		i := slices.Index(bars, 100)
		if i < 0 {
			if second < span-3 {
				t.Fatalf("after %d s the peak is lost: %v", second, bars)
			}
			return
		}
		if last >= 0 && i != last && i != last-1 {
			t.Errorf("after %d s the peak is in column %d, and was in %d", second, i, last)
		}
		last = i
	}
}

func TestGraph(t *testing.T) {
	for name, c := range map[string]struct {
		blocks  blocks
		bars    []float64
		height  int
		highest float64
		want    []string
	}{
		"eighths":     {eighths, []float64{0, 1, 2, 3, 4, 5, 6, 7, 8}, 1, 8, []string{"▁▁▂▃▄▅▆▇█"}},
		"unknown":     {eighths, []float64{unknown, 0, unknown, 8}, 1, 8, []string{" ▁ █"}},
		"all idle":    {eighths, []float64{0, 0}, 1, 0, []string{"▁▁"}},
		"a little":    {eighths, []float64{1, 1e9}, 1, 1e9, []string{"▁█"}},
		"three lines": {eighths, []float64{0, 8, 12, 24}, 3, 24, []string{"   █", "  ▄█", "▁███"}},
		"console":     {shades, []float64{0, 1, 2, 3, 4}, 1, 4, []string{"░░▒▓█"}},
	} {
		if got := c.blocks.graph(c.bars, c.height, c.highest); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestRates has counters that grow, and some that begin anew.
func TestRates(t *testing.T) {
	first := idle("tun01", 1)
	first.TX = control.Traffic{Packets: 1000, Bytes: 1e6, PacketRate: 7, ByteRate: 700, Drops: map[string]uint64{"no_route": 5, "too_big": 1}}
	second := first
	second.TX = control.Traffic{Packets: 1100, Bytes: 1e6 + 5000, Drops: map[string]uint64{"no_route": 7, "too_big": 1, "loop": 6}}
	second.RX.Drops = map[string]uint64{"loop": 1}
	p := process(1).Process

	r := (*row)(nil).next(key{}, &first, p, start)
	if r.out.bits != 5600 || r.out.packets != 7 || r.drops != 0 || r.reason != "" {
		t.Errorf("at first: %+v", r.out)
	}
	r = r.next(key{}, &second, p, start.Add(2*time.Second))
	if r.out.bits != 20000 || r.out.packets != 50 || r.drops != 4.5 || r.reason != "loop" || r.out.drops["no_route"] != 1 || r.in.drops["loop"] != 0.5 {
		t.Errorf("two seconds later: %+v", r)
	}
	quiet := r.next(key{}, &second, p, start.Add(61*time.Second))
	if quiet.drops != 0 || quiet.reason != "loop" {
		t.Errorf("within a minute: %v, %q", quiet.drops, quiet.reason)
	}
	if quiet = quiet.next(key{}, &second, p, start.Add(62*time.Second)); quiet.reason != "" {
		t.Errorf("after a minute: %q", quiet.reason)
	}
	restarted := p
	restarted.Started = start
	for name, again := range map[string]*row{
		"another start":   r.next(key{}, &first, restarted, start.Add(3*time.Second)),
		"another process": r.next(key{}, &first, process(2).Process, start.Add(3*time.Second)),
		"at once":         r.next(key{}, &first, p, start.Add(2*time.Second)),
	} {
		if again.out.bits != 5600 || again.drops != 0 || again.reason != "loop" {
			t.Errorf("%s: %+v", name, again)
		}
	}
	if fewer := r.next(key{}, &first, p, start.Add(3*time.Second)); fewer.out.bits != 0 || fewer.drops != 0 {
		t.Errorf("counters that are less: %+v", fewer)
	}
}
