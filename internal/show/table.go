package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"goipip/internal/daemon/control"
)

// table has a line for each of several tunnels, and a summary. Where the view has too
// few lines for all, it shows those first that do not work.
func (v View) table(list []entry) []line {
	summary := v.summary(list, 0)
	if room := v.tableRoom(len(summary)); v.Height > 0 && len(list) > room {
		all := list
		list = slices.Clone(all)
		slices.SortStableFunc(list, func(a, b entry) int { return cmp.Compare(a.state(), b.state()) })
		summary = v.summary(all, len(all)-room)
		list = list[:max(0, v.tableRoom(len(summary)))]
		summary = v.summary(all, len(all)-len(list))
	}
	text := v.fit(list)
	text = append(text, nil)
	return append(text, summary...)
}

// tableRoom is how many tunnels there is room for beside a summary.
func (v View) tableRoom(summary int) int {
	room := v.Height - 2 - summary // the heads, an empty line
	if v.Header != "" {
		room -= 2
	}
	return room
}

// fit returns the table in v's width. What is too wide loses space first, and columns
// then; only windows of less than 80 columns get that far.
func (v View) fit(list []entry) []line {
	for _, try := range []struct{ arrow, gap string }{{arrow, "  "}, {arrow, " "}} {
		if columns := v.columns(list, try.arrow); v.Width <= 0 || total(columns, try.gap) <= v.Width {
			return v.align(len(columns), try.gap, columns)
		}
	}
	return v.align(3, " ", v.columns(list, "→"))
}

// columns returns the table, the most important columns first.
func (v View) columns(list []entry, arrow string) []column {
	col := func(head string, a alignment, cell func(entry) span) column {
		c := column{a, []span{{strong, head}}}
		for _, e := range list {
			c.cells = append(c.cells, cell(e))
		}
		return c
	}
	return []column{
		col("NAME", left, func(e entry) span { return span{plain, e.Config.Name} }),
		col("STATE", left, func(e entry) span { return e.state().span() }),
		col("LOCAL"+arrow+"REMOTE", left, func(e entry) span { return span{plain, e.ends(arrow)} }),
		col("PMTU", right, func(e entry) span { return span{plain, shortMTU(e.Underlay.PathMTU)} }),
		col("RX", right, func(e entry) span { return span{plain, shortRate(e.RX)} }),
		col("TX", right, func(e entry) span { return span{plain, shortRate(e.TX)} }),
		col("DROP", right, func(e entry) span {
			n := e.dropped()
			if n == 0 {
				return span{plain, "0"}
			}
			return span{warn, Short(float64(n))}
		}),
		col("LAST", right, func(e entry) span { return span{plain, ShortAgo(v.Now, e.RX.Last)} }),
	}
}

func shortMTU(mtu int) string {
	if mtu == 0 {
		return "-"
	}
	return fmt.Sprint(mtu)
}

func shortRate(t control.Traffic) string { return Short(float64(t.ByteRate) * 8) }

// dropped returns how many packets were dropped in both directions.
func (e entry) dropped() uint64 {
	var n uint64
	for _, drops := range []map[string]uint64{e.TX.Drops, e.RX.Drops} {
		for _, k := range drops {
			n += k
		}
	}
	return n
}

// summary says how many tunnels do what, and what the columns are. Of the tunnels, so
// many are hidden.
func (v View) summary(list []entry, hidden int) []line {
	var n [len(states)]int
	for _, e := range list {
		n[e.state()]++
	}
	var parts []string
	for s := Up; s >= Down; s-- {
		if n[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[s], s))
		}
	}
	s := fmt.Sprintf("%s: %s.", plural(uint64(len(list)), "tunnel"), strings.Join(parts, ", "))
	if hidden > 0 {
		s += fmt.Sprintf(" %d are not shown, for lack of lines.", hidden)
	}
	if n[Up]+n[Away] < len(list) {
		s += " goipip show NAME says why."
	}
	s += " RX and TX are in bit/s, LAST is the last packet received."
	return v.hanging(nil, plain, s)
}
