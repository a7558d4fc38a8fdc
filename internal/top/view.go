package top

import (
	"fmt"
	"strings"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// tableRoom is how many lines there are for tunnels, beside the title, the heads of columns, and the last line.
func (m *model) tableRoom() int { return max(0, m.height-3-m.aboutRoom()) }

// aboutRoom is how many lines there are on the selected tunnel.
func (m *model) aboutRoom() int {
	switch {
	case m.height >= 20:
		return 2
	case m.height >= 8:
		return 1
	}
	return 0
}

// bodyRoom is how many lines there are between the title and the last line.
func (m *model) bodyRoom() int { return max(0, m.height-2) }

// View is for [tea.Model].
func (m *model) View() tea.View {
	var lines []string
	switch m.mode {
	case table:
		lines = m.viewTable()
	case detail:
		lines = m.viewDetail()
	case help:
		lines = m.viewHelp()
	}
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, m.width, "…")
	}
	lines = lines[:max(0, min(len(lines), m.height))]
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	if m.filtering && len(lines) == m.height {
		v.Cursor = tea.NewCursor(min(ansi.StringWidth(m.bottom()), m.width-1), m.height-1)
	}
	return v
}

// viewTable has a line for each tunnel that the window has room for.
func (m *model) viewTable() []string {
	lines := []string{m.title(), m.layout.head(m.sortedBy, m.sort)}
	room := m.tableRoom()
	shown := m.order[m.top:min(len(m.order), m.top+room)]
	for i, r := range shown {
		if m.top+i == m.cursor {
			lines = append(lines, m.layout.selected(r, m.at))
		} else {
			lines = append(lines, m.layout.row(r, m.at))
		}
	}
	if len(m.order) == 0 {
		lines = append(lines, wrap(m.whyEmpty(), m.width)...)
	}
	lines = fill(lines, 2+room)
	if n := m.aboutRoom(); n > 0 {
		lines = fill(append(lines, wrap(m.about(), m.width)...), 2+room+n)
	}
	return append(lines, m.bottom())
}

func (m *model) whyEmpty() string {
	switch {
	case len(m.rows) > 0:
		return fmt.Sprintf("no tunnel has %q in its name, addresses, state, path or reason: Esc shows all", m.filter)
	case len(m.names) > 0:
		return "waiting for " + show.Printable(strings.Join(m.names, ", "))
	}
	return show.NoTunnels
}

// title has the time of what is shown, and how many tunnels do what.
func (m *model) title() string {
	text := strong.Render("goipip top") + "  " + m.at.Format(time.TimeOnly) + "  "
	if m.filter != "" {
		return text + fmt.Sprintf("%d of %s with %s", len(m.order), plural(len(m.rows), "tunnel"), strong.Render("/"+m.filter))
	}
	text += summary(m.order)
	if room := m.tableRoom(); len(m.order) > room {
		text += faint.Render(fmt.Sprintf("  (%d to %d)", m.top+1, min(len(m.order), m.top+room)))
	}
	if gone := m.missing(); gone != nil {
		text += "  " + bad.Render("not there: "+show.Printable(strings.Join(gone, ", ")))
	}
	return text
}

// about is a line on the selected tunnel.
func (m *model) about() string {
	r := m.selected()
	if r == nil {
		return ""
	}
	text := show.Printable(r.name) + "  " + show.Ends(r.TunnelStatus)
	switch {
	case r.state() == show.Down:
		return text + "  " + bad.Render("the link is down: no packets pass until it is up")
	case r.Trouble != "":
		return text + "  " + bad.Render(show.Printable(r.Trouble))
	case r.reason != "":
		return text + "  " + warn.Render("drops: "+show.Printable(r.reason)) + ", " + show.ReasonHelp(r.reason)
	}
	return text
}

// bottom is the line for what the keys do, unless there is something to tell.
func (m *model) bottom() string {
	switch {
	case m.filtering:
		return "/" + m.filter
	case m.err != nil:
		return bad.Render(show.Printable(strings.ReplaceAll(m.err.Error(), "\n", "; ")))
	case m.news != "" && m.at.Sub(m.told) < newsTime:
		return warn.Render(m.told.Format(time.TimeOnly) + " " + m.news)
	case m.mode == detail:
		return faint.Render("↑↓ scroll  Esc back  ? help  q quit")
	case m.mode == help:
		return faint.Render("↑↓ scroll  Esc back  q quit")
	}
	for _, keys := range []string{
		"↑↓ select  Enter open  < > sort  r reverse  / filter  ? help  q quit",
		"Enter open  < > sort  / filter  ? help  q quit",
	} {
		if ansi.StringWidth(keys) <= m.width {
			return faint.Render(keys)
		}
	}
	return faint.Render("? help  q quit")
}

// viewDetail is all about the opened tunnel: the last minute, what is dropped now, and what goipip show has.
func (m *model) viewDetail() []string {
	title := strong.Render("goipip top") + "  " + m.at.Format(time.TimeOnly) + "  " + strong.Render(show.Printable(m.opened.name))
	if r := m.rows[m.opened]; r != nil {
		s := r.state()
		title += "  " + stateStyle(s).Render(s.String()) + "  " + show.Ends(r.TunnelStatus)
	} else {
		title += "  " + bad.Render("gone")
	}
	return m.scrolled(title, m.detail())
}

// scrolled is a title, of a text so many lines as there is room for, and the last line.
func (m *model) scrolled(title string, text []string) []string {
	start := min(m.offset, len(text))
	end := min(len(text), start+m.bodyRoom())
	lines := fill(append([]string{title}, text[start:end]...), m.height-1)
	bottom := m.bottom()
	if more := len(text) - end; more > 0 {
		bottom += faint.Render(fmt.Sprintf("  (%s below)", plural(more, "more line")))
	}
	return append(lines, bottom)
}

// detail is the lines between the title and the last one.
func (m *model) detail() []string {
	r := m.rows[m.opened]
	if r == nil {
		return wrap("There is no such tunnel now. If it comes back it is shown here.", m.width)
	}
	lines := m.lastMinute("in", &r.in)
	lines = append(lines, m.lastMinute("out", &r.out)...)
	lines = append(lines, "")
	lines = append(lines, r.dropping()...)
	return append(lines, m.everything(r)...)
}

// graphHeight is the lines of a graph in a detail.
const graphHeight = 3

// lastMinute draws one direction.
func (m *model) lastMinute(name string, d *direction) []string {
	const indent = "  "
	bars := d.minute.bars(m.at, max(1, min(span, m.width-len(indent))))
	most := highest(bars)
	head := fmt.Sprintf("%s%-3s  %s  %s packets/s", indent, name, strong.Render(rate(d.bits)), show.Short(d.packets))
	if most > 0 {
		head += faint.Render(fmt.Sprintf("  (at most %s in the last minute)", rate(most)))
	}
	lines := []string{head}
	for _, l := range m.blocks.graph(bars, graphHeight, most) {
		lines = append(lines, indent+good.Render(l))
	}
	return lines
}

// rate returns bits a second in text.
func rate(bits float64) string { return show.Rate(uint64(bits / 8)) }

// dropping says what is dropped now, by reason.
func (r *row) dropping() []string {
	var lines []string
	for _, d := range []struct {
		name  string
		drops map[string]float64
	}{{"sent", r.out.drops}, {"received", r.in.drops}} {
		for _, reason := range byRate(d.drops) {
			rate := warn.Render(show.Short(d.drops[reason]) + "/s")
			lines = append(lines, fmt.Sprintf("  dropping when %-8s  %s  %s", d.name, rate, show.Printable(reason)))
		}
	}
	if lines != nil {
		lines = append(lines, "")
	}
	return lines
}

// everything is what goipip show has about the tunnel, after its name and state.
func (m *model) everything(r *row) []string {
	v := show.View{Now: m.at, Width: m.width, Colour: m.colour}
	lines, err := v.Lines([]control.Status{{Process: r.process, Tunnels: []control.TunnelStatus{*r.TunnelStatus}}}, "")
	if err != nil {
		return v.Problem(err.Error())
	}
	return lines[1:]
}

// helpTexts is keys and columns, and what they are for.
var helpTexts = []struct{ term, text string }{
	{"↑ ↓ PgUp PgDn", "select a tunnel; also Home, End, j, k, g, G"},
	{"Enter", "open it: all about it; Esc goes back"},
	{"< >", "sort by the column to the left, to the right"},
	{"r", "reverse the order"},
	{"/", "show only tunnels with a text in their name, addresses, state, path or reason; Enter keeps it, Esc shows all"},
	{"q, Ctrl-C", "quit; Ctrl-Z stops"},
	{},
	{"IN, OUT", "bit/s received from the remote end, and sent to it"},
	{"PPS IN, PPS OUT", "packets a second"},
	{"DROP/S", "packets dropped a second, in both directions"},
	{"REASON", "why most were, when some were within the last minute"},
	{"PATH", "how packets leave: fast (the kernel alone), or by a packet or raw socket"},
	{"PMTU", "path MTU, of outer packets, in bytes"},
	{"SEEN", "when the last packet was received"},
	{"LAST MINUTE", "the rate in both directions; each row has its own scale"},
	{},
	{"▲ ▼", "mark what the rows are sorted by; columns without room are left out"},
}

// viewHelp is what keys and columns are for.
func (m *model) viewHelp() []string { return m.scrolled(strong.Render("goipip top"), m.help()) }

func (m *model) help() []string {
	const indent = 19
	var lines []string
	for _, h := range helpTexts {
		lead := "  " + h.term
		for _, part := range wrap(h.text, m.width-indent) {
			lines = append(lines, lead+strings.Repeat(" ", indent-ansi.StringWidth(lead))+part)
			lead = ""
		}
	}
	return lines
}

// fill returns so many lines: the first ones, and empty ones after the last.
func fill(lines []string, n int) []string {
	n = max(n, 0)
	for len(lines) < n {
		lines = append(lines, "")
	}
	return lines[:n]
}

// wrap breaks text into lines of at most so many columns.
func wrap(text string, width int) []string {
	return strings.Split(lipgloss.Wrap(text, max(width, 1), " "), "\n")
}
