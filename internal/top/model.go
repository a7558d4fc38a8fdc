package top

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"

	tea "charm.land/bubbletea/v2"
)

// answerTimeout bounds the wait for the statuses.
const answerTimeout = 5 * time.Second

// newsTime is how long it is said that a process has come or ended.
const newsTime = 10 * time.Second

// sample is the statuses at a time.
type sample struct {
	asked, at time.Time
	all       []control.Status
	err       error
}

// mode is what the window shows.
type mode int

const (
	table mode = iota
	detail
	help
)

// model is the tunnels and what the window shows of them. It has no clock: times are those of samples. Bubble Tea calls
// its methods in one goroutine; the commands that they return fetch in others.
type model struct {
	ctx      context.Context
	fetch    Fetch
	names    []string
	interval time.Duration
	colour   bool
	blocks   blocks

	width, height int
	mode          mode
	before        mode // that help goes back to
	offset        int  // lines of a detail or of the help above the window

	// What was fetched last. After an error it is older than that.
	at   time.Time
	all  []control.Status // of all processes
	err  error
	news string // of processes
	told time.Time

	rows     map[key]*row
	last     map[key]*row // these, and those that went away within the last minute
	order    []*row       // those that the filter leaves, as sorted
	layout   layout
	sortedBy int // an index of columns
	sort     order

	filter    string
	filtering bool // keys go there

	// cursor is the selected row of order. It stays with its tunnel once it has been moved, and until then at the top.
	cursor int
	moved  bool
	top    int // the first row in the window
	opened key // the tunnel of the detail
}

// Init is for [tea.Model]. The first sample is there already.
func (m *model) Init() tea.Cmd { return m.later(m.interval) }

// Update is for [tea.Model].
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.arrange()
	case sample:
		m.take(msg)
		return m, m.later(m.interval - msg.at.Sub(msg.asked))
	case tea.PasteMsg:
		if m.filtering {
			m.setFilter(m.filter + msg.Content)
		}
	case tea.KeyPressMsg:
		return m, m.press(msg)
	}
	return m, nil
}

// later takes a sample after a time.
func (m *model) later(after time.Duration) tea.Cmd {
	return tea.Tick(max(after, 0), func(time.Time) tea.Msg { return takeSample(m.ctx, m.fetch) })
}

func takeSample(ctx context.Context, fetch Fetch) sample {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	s := sample{asked: time.Now()}
	s.all, s.err = fetch(ctx)
	s.at = time.Now()
	if errors.Is(s.err, context.DeadlineExceeded) {
		s.err = fmt.Errorf("goipip has not answered for %v", answerTimeout)
	}
	return s
}

// take makes rows of a sample. If no process answered, the rows stay as they are.
func (m *model) take(s sample) {
	m.err = s.err
	if s.err != nil && len(s.all) == 0 {
		return
	}
	if s.err == nil && !m.at.IsZero() {
		m.compareProcesses(s)
	}
	m.at, m.all = s.at, s.all
	rows := make(map[key]*row)
	for _, p := range s.all {
		for i := range p.Tunnels {
			t := &p.Tunnels[i]
			k := key{name: t.Config.Name}
			if len(m.names) > 0 && !slices.Contains(m.names, k.name) {
				continue
			}
			for rows[k] != nil {
				k.n++
			}
			rows[k] = m.last[k].next(k, t, p.Process, s.at)
		}
	}
	last := maps.Clone(rows)
	for k, r := range m.last {
		if last[k] == nil && s.at.Sub(r.at) < memory {
			last[k] = r
		}
	}
	m.rows, m.last = rows, last
	m.arrange()
}

// compareProcesses sets the news of processes that have come or ended.
func (m *model) compareProcesses(s sample) {
	has := func(all []control.Status, p control.Process) bool {
		return slices.ContainsFunc(all, func(q control.Status) bool { return same(p, q.Process) })
	}
	var news []string
	for _, p := range m.all {
		if !has(s.all, p.Process) {
			news = append(news, fmt.Sprintf("process %d ended, with %s", p.Process.PID, plural(len(p.Tunnels), "tunnel")))
		}
	}
	for _, p := range s.all {
		if !has(m.all, p.Process) {
			news = append(news, fmt.Sprintf("process %d is new, with %s", p.Process.PID, plural(len(p.Tunnels), "tunnel")))
		}
	}
	if news != nil {
		m.news, m.told = strings.Join(news, "; "), s.at
	}
}

// missing returns the names of Options that no tunnel has now.
func (m *model) missing() []string {
	var names []string
	for _, name := range m.names {
		if m.rows[key{name: name}] == nil {
			names = append(names, name)
		}
	}
	return names
}

// arrange filters and sorts the rows, and lays the table out. The cursor stays with its tunnel.
func (m *model) arrange() {
	at := m.selected()
	m.order = m.order[:0]
	for _, r := range m.rows {
		if r.matches(m.filter) {
			m.order = append(m.order, r)
		}
	}
	slices.SortFunc(m.order, func(a, b *row) int {
		n := columns[m.sortedBy].compare(a, b)
		if m.sort == descending {
			n = -n
		}
		return cmp.Or(n, byName(a, b))
	})
	m.layout = newLayout(m.order, m.width, m.sortedBy)
	m.layout.blocks = m.blocks
	if at != nil && m.moved {
		if i := slices.IndexFunc(m.order, func(r *row) bool { return r.key == at.key }); i >= 0 {
			m.cursor = i
		}
	}
	m.move(0)
}

// matches reports whether a row has the text of a filter, in any case of letters.
func (r *row) matches(filter string) bool {
	if filter == "" {
		return true
	}
	text := strings.Join([]string{r.name, show.Ends(r.TunnelStatus), r.state().String(), r.path(), r.reason}, "\n")
	return strings.Contains(strings.ToLower(text), strings.ToLower(filter))
}

// selected returns the row under the cursor; nil if there are none.
func (m *model) selected() *row {
	if m.cursor < len(m.order) {
		return m.order[m.cursor]
	}
	return nil
}

// move moves the cursor by so many rows, and the window with it.
func (m *model) move(by int) {
	m.cursor = max(0, min(m.cursor+by, len(m.order)-1))
	room := max(1, m.tableRoom())
	m.top = max(0, min(m.top, m.cursor, len(m.order)-room))
	m.top = max(m.top, m.cursor-room+1)
}

// press does what a key is for.
func (m *model) press(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	switch name {
	case "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Exec(stop{m.ctx}, nil)
	}
	if m.filtering {
		m.pressFilter(k)
		return nil
	}
	switch name {
	case "q", "Q":
		return tea.Quit
	case "?", "h", "f1":
		if m.mode != help {
			m.before, m.mode, m.offset = m.mode, help, 0
		} else {
			m.mode, m.offset = m.before, 0
		}
		return nil
	}
	switch m.mode {
	case help:
		m.pressText(name, m.help(), m.before)
	case detail:
		m.pressText(name, m.detail(), table)
	case table:
		m.pressTable(name)
	}
	return nil
}

func (m *model) pressTable(key string) {
	if by, ok := steps(key, m.tableRoom()); ok {
		m.moved = true
		m.move(by)
		if key == "home" || key == "g" {
			m.moved = false
		}
		return
	}
	switch key {
	case "enter":
		if r := m.selected(); r != nil {
			m.opened, m.mode, m.offset, m.moved = r.key, detail, 0, true
		}
	case "esc":
		m.setFilter("")
	case "/":
		m.filtering = true
	case "<", "left":
		m.sortBy(m.sortedBy - 1)
	case ">", "right":
		m.sortBy(m.sortedBy + 1)
	case "r":
		m.sort = !m.sort
		m.arrange()
	}
}

// steps returns by how much a key moves in a window with room for so many lines.
func steps(key string, room int) (by int, ok bool) {
	const all = 1 << 30
	switch key {
	case "up", "k":
		return -1, true
	case "down", "j":
		return 1, true
	case "pgup", "ctrl+b":
		return -max(1, room), true
	case "pgdown", "ctrl+f", "space":
		return max(1, room), true
	case "home", "g":
		return -all, true
	case "end", "G":
		return all, true
	}
	return 0, false
}

func (m *model) sortBy(column int) {
	m.sortedBy = (column + len(columns)) % len(columns)
	m.sort = columns[m.sortedBy].first
	m.arrange()
}

func (m *model) pressFilter(k tea.KeyPressMsg) {
	switch k.String() {
	case "enter":
		m.filtering = false
	case "esc":
		m.filtering = false
		m.setFilter("")
	case "backspace", "ctrl+h":
		if r := []rune(m.filter); len(r) > 0 {
			m.setFilter(string(r[:len(r)-1]))
		}
	case "ctrl+u":
		m.setFilter("")
	default:
		m.setFilter(m.filter + k.Text)
	}
}

func (m *model) setFilter(text string) {
	m.filter = show.Printable(text)
	m.arrange()
}

// pressText scrolls a text, or goes back.
func (m *model) pressText(key string, text []string, back mode) {
	if by, ok := steps(key, m.bodyRoom()); ok {
		m.offset = max(0, min(m.offset+by, len(text)-m.bodyRoom()))
		return
	}
	switch key {
	case "esc", "backspace", "left":
		m.mode, m.offset = back, 0
	}
}
