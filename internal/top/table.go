package top

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"goipip/internal/show"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// The styles, in the terminal's own colours. Bubble Tea leaves colours out where the terminal is to have none.
var (
	plain    = lipgloss.NewStyle()
	strong   = lipgloss.NewStyle().Bold(true)
	faint    = lipgloss.NewStyle().Faint(true)
	good     = lipgloss.NewStyle().Foreground(lipgloss.Green)
	warn     = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
	bad      = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
	heading  = lipgloss.NewStyle().Underline(true)
	sorted   = lipgloss.NewStyle().Underline(true).Bold(true)
	selected = lipgloss.NewStyle().Reverse(true)
)

// cell is a text of one style, without control characters.
type cell struct {
	text  string
	style lipgloss.Style
}

// column is one of the table.
type column struct {
	head string
	// rank is the place by importance, up to lastRank: in narrow windows the greatest vanish first.
	rank    int
	align   alignment
	first   order // when the column is chosen to sort by
	cell    func(*row) cell
	compare func(a, b *row) int
}

const lastRank = 10

type alignment bool

const (
	left  alignment = false
	right alignment = true
)

type order bool

const (
	ascending  order = false
	descending order = true
)

// numberWidth is that of the longest number, so that columns stay where they are while numbers change.
const numberWidth = 4

// columns are those of the table, from left to right.
var columns = []column{
	{"NAME", 0, left, ascending, func(r *row) cell { return cell{show.Printable(r.name), plain} }, byName},
	{"STATE", 1, left, ascending, stateCell, by((*row).state)},
	numbers("IN", 2, func(r *row) float64 { return r.in.bits }),
	numbers("OUT", 3, func(r *row) float64 { return r.out.bits }),
	numbers("PPS IN", lastRank, func(r *row) float64 { return r.in.packets }),
	numbers("PPS OUT", lastRank, func(r *row) float64 { return r.out.packets }),
	{"DROP/S", 4, right, descending, dropsCell, by(func(r *row) float64 { return r.drops })},
	{reasonHead, 5, left, descending, reasonCell, by(func(r *row) string { return r.reason })},
	{"PATH", 9, left, ascending, func(r *row) cell { return cell{show.Printable(r.path()), plain} }, by((*row).path)},
	{"PMTU", 8, right, ascending, pathMTUCell, by(func(r *row) int { return r.Underlay.PathMTU })},
	{"SEEN", 6, right, ascending, seenCell, by(func(r *row) time.Duration { return r.at.Sub(r.RX.Last) })},
	{minuteHead, 7, left, descending, nil, by(func(r *row) float64 { return r.in.bits + r.out.bits })},
}

// numbers is a column of rates.
func numbers(head string, rank int, value func(*row) float64) column {
	return column{head, rank, right, descending, func(r *row) cell { return cell{show.Short(value(r)), plain} }, by(value)}
}

// The column of reasons is there only if there are any; that of sparklines is as wide as there is room.
const (
	reasonHead  = "REASON"
	minuteHead  = "LAST MINUTE"
	minuteWidth = 12 // at least: room for the head and the mark of sorting
)

func by[T cmp.Ordered](value func(*row) T) func(a, b *row) int {
	return func(a, b *row) int { return cmp.Compare(value(a), value(b)) }
}

func byName(a, b *row) int { return cmp.Or(show.CompareNames(a.name, b.name), cmp.Compare(a.n, b.n)) }

func stateCell(r *row) cell {
	s := r.state()
	return cell{s.String(), stateStyle(s)}
}

func stateStyle(s show.State) lipgloss.Style {
	switch s {
	case show.Up:
		return good
	case show.Away:
		return strong
	}
	return bad
}

func dropsCell(r *row) cell {
	c := cell{show.Short(r.drops), plain}
	if r.drops > 0 && r.drops < 1 {
		c.text = "<1"
	}
	if r.drops > 0 {
		c.style = warn
	}
	return c
}

func reasonCell(r *row) cell { return cell{show.Printable(r.reason), warn} }

func seenCell(r *row) cell { return cell{show.ShortAgo(r.at, r.RX.Last), plain} }

func pathMTUCell(r *row) cell {
	if r.Underlay.PathMTU == 0 {
		return cell{"-", plain}
	}
	return cell{strconv.Itoa(r.Underlay.PathMTU), plain}
}

// layout is the columns that a window has, with their widths.
type layout struct {
	columns []int // indexes of columns
	widths  []int
	gap     int
	blocks  blocks
}

// mark is what stands in front of the selected row, and what takes its room elsewhere.
const mark, noMark = "► ", "  "

// newLayout places columns in a window of so many columns. That which the rows are sorted by does not vanish.
func newLayout(rows []*row, width, sortedBy int) layout {
	natural := make([]int, len(columns))
	for i, c := range columns {
		if c.cell == nil {
			natural[i] = minuteWidth
			continue
		}
		for _, r := range rows {
			natural[i] = max(natural[i], ansi.StringWidth(c.cell(r).text))
		}
		if c.align == right {
			natural[i] = max(natural[i], numberWidth)
		}
		if natural[i] > 0 || c.head != reasonHead || i == sortedBy {
			natural[i] = max(natural[i], ansi.StringWidth(c.head))
			if i == sortedBy {
				natural[i] = max(natural[i], ansi.StringWidth(c.head)+1)
			}
		}
	}
	shown := make([]bool, len(columns))
	for i := range columns {
		shown[i] = natural[i] > 0
	}
	total := func(gap int) int {
		sum := ansi.StringWidth(mark) - gap
		for i, w := range natural {
			if shown[i] {
				sum += w + gap
			}
		}
		return sum
	}
	for rank := lastRank; rank > 0 && total(1) > width; rank-- {
		for i, c := range columns {
			shown[i] = shown[i] && (c.rank != rank || i == sortedBy)
		}
	}
	l := layout{gap: 1}
	if total(2) <= width {
		l.gap = 2
	}
	rest := width - total(l.gap)
	for i, w := range natural {
		if !shown[i] {
			continue
		}
		if columns[i].cell == nil {
			w = min(w+max(rest, 0), span)
		}
		l.columns, l.widths = append(l.columns, i), append(l.widths, w)
	}
	return l
}

// head is the line with the names of the columns.
func (l layout) head(sortedBy int, o order) string {
	return l.line(noMark, func(i int) cell {
		if i != sortedBy {
			return cell{columns[i].head, heading}
		}
		if o == descending {
			return cell{columns[i].head + "▼", sorted}
		}
		return cell{columns[i].head + "▲", sorted}
	})
}

// row is the line of a tunnel at a time.
func (l layout) row(r *row, now time.Time) string {
	return l.line(noMark, func(i int) cell { return l.cell(i, r, now) })
}

// selected is the line of the selected tunnel, which has one style.
func (l layout) selected(r *row, now time.Time) string {
	return selected.Render(l.line(mark, func(i int) cell {
		return cell{l.cell(i, r, now).text, plain}
	}))
}

func (l layout) cell(i int, r *row, now time.Time) cell {
	if c := columns[i].cell; c != nil {
		return c(r)
	}
	bars := r.minute(now, l.widths[len(l.widths)-1])
	return cell{l.blocks.graph(bars, 1, highest(bars))[0], good}
}

func highest(bars []float64) float64 {
	most := 0.0
	for _, r := range bars {
		most = max(most, r)
	}
	return most
}

// line places cells.
func (l layout) line(mark string, cell func(column int) cell) string {
	var b strings.Builder
	b.WriteString(mark)
	for at, i := range l.columns {
		if at > 0 {
			b.WriteString(strings.Repeat(" ", l.gap))
		}
		c := cell(i)
		fill := strings.Repeat(" ", max(0, l.widths[at]-ansi.StringWidth(c.text)))
		if columns[i].align == right {
			b.WriteString(fill)
			fill = ""
		}
		b.WriteString(c.style.Render(c.text) + fill)
	}
	return b.String()
}

// summary says how many tunnels there are of each state.
func summary(rows []*row) string {
	var n [show.Up + 1]int
	for _, r := range rows {
		n[r.state()]++
	}
	var parts []string
	for s := show.Up; s >= show.Down; s-- {
		if n[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %v", n[s], s))
		}
	}
	text := plural(len(rows), "tunnel")
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return text
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
