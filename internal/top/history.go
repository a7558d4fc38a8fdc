package top

import (
	"slices"
	"strings"
	"time"
)

// span is how many seconds a history has.
const span = 60

// unknown is the rate of a second without a sample.
const unknown = -1

// history is a rate in each of the last seconds. The zero history knows none.
type history struct {
	newest int64         // a Unix time; 0 if nothing is known
	rates  [span]float64 // by Unix time modulo span
}

// add says that the rate was r from one time to another. Of several rates in one second the highest counts.
func (h *history) add(from, to time.Time, r float64) {
	first, last := from.Unix()+1, to.Unix()
	if last <= h.newest {
		if slot := h.slot(last); last > h.newest-span {
			*slot = max(*slot, r)
		}
		return
	}
	first = max(min(first, last), h.newest+1, last-span+1)
	for second := max(h.newest+1, last-span+1); second <= last; second++ {
		*h.slot(second) = unknown
		if second >= first {
			*h.slot(second) = r
		}
	}
	h.newest = last
}

func (h *history) slot(second int64) *float64 { return &h.rates[second%span] }

// bars returns the last minute up to a time in at most so many columns, the oldest first: the highest rate in the
// seconds of each, or unknown. A column has the same seconds at any time, so that a bar moves and does not change.
func (h *history) bars(now time.Time, columns int) []float64 {
	seconds := int64((span + columns - 1) / columns)
	n := (span + seconds - 1) / seconds
	bars := slices.Repeat([]float64{unknown}, int(n))
	newest := now.Unix() / seconds
	for second := max(now.Unix()-span+1, h.newest-span+1, 1); second <= min(h.newest, now.Unix()); second++ {
		if i := n - 1 - (newest - second/seconds); i >= 0 {
			bars[i] = max(bars[i], *h.slot(second))
		}
	}
	return bars
}

// blocks are what bars are made of: a cell filled by more and more, and last the whole.
type blocks []rune

// The fonts of the Linux console (console_codes(4)) have what was on a PC's: shades, and no eighths.
var (
	eighths = blocks("▁▂▃▄▅▆▇█")
	shades  = blocks("░▒▓█")
)

// graph draws bars in so many lines, the lowest last, up to the highest rate. A rate of 0 has the lowest block, and an
// unknown one has none.
func (b blocks) graph(bars []float64, height int, highest float64) []string {
	all := len(b) * height
	lines := make([]string, height)
	for i := range lines {
		below := (height - 1 - i) * len(b)
		var line strings.Builder
		for _, r := range bars {
			n := 1
			if r > 0 && highest > 0 {
				n = max(1, int(r/highest*float64(all)+0.5))
			}
			switch full := min(n, all) - below; {
			case r < 0 || full <= 0:
				line.WriteRune(' ')
			default:
				line.WriteRune(b[min(full, len(b))-1])
			}
		}
		lines[i] = line.String()
	}
	return lines
}
