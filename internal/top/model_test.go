package top

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

var update = flag.Bool("update", false, "write the golden files")

// start is when all tests begin to look.
var start = time.Date(2026, 11, 26, 17, 40, 58, 0, time.UTC)

// idle is a tunnel that nothing passes.
func idle(name string, end int) control.TunnelStatus {
	return control.TunnelStatus{
		Config: tunnel.Config{
			Name: name, Local: netip.MustParseAddr("10.90.6.238"), Remote: netip.MustParseAddr(fmt.Sprintf("192.168.1.%d", end)),
			Address: netip.MustParsePrefix("172.66.1.101/32"), Peer: netip.MustParseAddr("172.66.2.101"), Queues: 1,
		},
		Since: start.Add(-2*time.Hour - 5*time.Minute), Index: 7, Up: true, MTU: 1480,
		Underlay: control.Underlay{
			Source: netip.MustParseAddr("10.90.6.238"), Device: "eth0", NextHop: netip.MustParseAddr("10.90.6.1"), LinkAddr: "02:00:00:00:00:01",
			Transmit: "packet", PathMTU: 1500, DeviceMTU: 1500,
		},
		Link: map[string]uint64{"tx_errors": 0},
	}
}

// process is one with tunnels.
func process(pid int, tunnels ...control.TunnelStatus) control.Status {
	return control.Status{
		Process: control.Process{
			PID: pid, Version: "v1.4.0", Role: control.RoleRun, Config: "/etc/goipip/goipip.toml",
			Started: start.Add(-75 * time.Hour), Workers: 2,
		},
		Tunnels: tunnels,
	}
}

// passes adds what passes in a second to a tunnel's counters.
func passes(t *control.Traffic, at time.Time, packets, bytes uint64) {
	t.Packets, t.Bytes, t.PacketRate, t.ByteRate, t.Last = t.Packets+packets, t.Bytes+bytes, packets, bytes, at
}

// wave is a load that comes and goes, from 0 to 99, within 30 seconds.
func wave(second int) uint64 {
	load := (second + 10) % 30 * 7
	return uint64(min(load, 203-load, 99))
}

// minute is a model that has seen a minute of tunnels of all kinds.
func minute(o Options) *model {
	m := newModel(context.Background(), nil, o)
	busy, quiet, fast := idle("tun01", 129), idle("tun02", 130), idle("paris", 140)
	lost, shut := idle("backup", 131), idle("old", 132)
	fast.FastPath = &control.FastPath{Used: true, Sent: 1234000, Received: 654000}
	fast.Underlay.PathMTU = 1400
	lost.Trouble = "no route to the remote address: packets are dropped until there is one (ip route add)"
	lost.Underlay = control.Underlay{Source: lost.Config.Local, Transmit: "raw", WhyRaw: "network is unreachable"}
	shut.Up = false
	away := idle("tun10", 150)
	away.Away = true
	away.RX.Last = start.Add(-50 * time.Minute)
	var received, sent, refused uint64
	for second := range span + 1 {
		at := start.Add(time.Duration(second) * time.Second)
		passes(&busy.RX, at, 12*wave(second), 15000*wave(second))
		passes(&busy.TX, at, 9*wave(second), 700*wave(second))
		passes(&fast.RX, at, 80000+100*uint64(second%7), 104000000+1000000*uint64(second%7))
		passes(&fast.TX, at, 39000, 2000000)
		if second%20 == 0 {
			passes(&quiet.RX, at, 1, 84)
			passes(&quiet.TX, at, 1, 84)
		} else {
			passes(&quiet.RX, quiet.RX.Last, 0, 0)
			passes(&quiet.TX, quiet.TX.Last, 0, 0)
		}
		received, sent, refused = received+3, sent+uint64(second%3), refused+10
		busy.RX.Drops = map[string]uint64{stats.RcvbufFull.String(): received}
		busy.TX.Drops = map[string]uint64{stats.TooBig.String(): sent}
		lost.TX.Drops = map[string]uint64{stats.NoRoute.String(): refused}
		m.Update(sample{asked: at, at: at, all: []control.Status{process(4242, busy, quiet, lost, shut, fast), process(99, away)}})
	}
	return m
}

// keys are those with names of their own.
var keys = map[string]tea.Key{
	"up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown}, "enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape},
	"home": {Code: tea.KeyHome}, "end": {Code: tea.KeyEnd}, "pgdown": {Code: tea.KeyPgDown}, "pgup": {Code: tea.KeyPgUp},
	"backspace": {Code: tea.KeyBackspace}, "ctrl+c": {Code: 'c', Mod: tea.ModCtrl}, "ctrl+u": {Code: 'u', Mod: tea.ModCtrl},
}

// types presses keys, the names of which are separated by spaces, and returns what the last one commands.
func (m *model) types(names string) (cmd tea.Cmd) {
	for name := range strings.FieldsSeq(names) {
		key, ok := keys[name]
		if !ok {
			key = tea.Key{Code: []rune(name)[0], Text: name}
		}
		_, cmd = m.Update(tea.KeyPressMsg(key))
	}
	return cmd
}

func (m *model) resize(width, height int) {
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
}

// screen is the window without styles and without spaces at the ends of lines.
func (m *model) screen() string {
	lines := strings.Split(ansi.Strip(m.View().Content), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

// line returns the first line of the window that has a text.
func (m *model) line(text string) string {
	for l := range strings.Lines(m.screen()) {
		if strings.Contains(l, text) {
			return l
		}
	}
	return ""
}

func TestGolden(t *testing.T) {
	for _, size := range []struct{ width, height int }{{80, 24}, {60, 20}, {120, 40}} {
		for name, keys := range map[string]string{
			"table": "", "selected": "down down", "sorted": "> >", "filtered": "/ p a t h enter", "typing": "/ 1 0", "nothing": "/ z z enter",
			"detail": "end up up enter", "trouble": "enter", "scrolled": "end up up enter end", "help": "?",
		} {
			name = fmt.Sprintf("%s-%dx%d", name, size.width, size.height)
			t.Run(name, func(t *testing.T) {
				m := minute(Options{})
				m.resize(size.width, size.height)
				m.types(keys)
				golden(t, name, m.screen())
			})
		}
	}
}

// golden compares got with the file testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	labtest.Golden(t, filepath.Join("testdata", name+".golden"), got, *update, "./internal/top -update")
}

// TestDocs compares the screen in docs/top.md with that of the test above, and its keys with those of the help.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/top.md")
	if err != nil {
		t.Fatal(err)
	}
	screen, err := os.ReadFile("testdata/selected-80x24.golden")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "```\n"+string(screen)+"```\n") {
		t.Errorf("docs/top.md should have\n%s", screen)
	}
	for _, c := range columns {
		if !strings.Contains(string(doc), "| "+c.head) && !strings.Contains(string(doc), ", "+c.head+" |") {
			t.Errorf("docs/top.md lacks the column %s", c.head)
		}
	}
	for _, h := range helpTexts {
		for key := range strings.FieldsSeq(strings.ReplaceAll(h.term, ",", "")) {
			if !strings.Contains(string(doc), key) {
				t.Errorf("docs/top.md lacks %s", key)
			}
		}
	}
}

// TestEverySize draws each screen in windows of all sizes, down to none.
func TestEverySize(t *testing.T) {
	m := minute(Options{})
	for _, keys := range []string{"", "enter", "end", "esc ?", "esc / z", "esc esc"} {
		m.types(keys)
		for width := 0; width < 130; width += 1 + width/20 {
			for _, height := range []int{0, 1, 2, 3, 4, 5, 7, 8, 12, 24, 50} {
				m.resize(width, height)
				lines := strings.Split(m.View().Content, "\n")
				if len(lines) != max(1, height) {
					t.Fatalf("after %q, %d×%d: %d lines", keys, width, height, len(lines))
				}
				for _, l := range lines {
					if w := ansi.StringWidth(l); w > width {
						t.Fatalf("after %q, %d×%d: %d columns: %q", keys, width, height, w, l)
					}
				}
			}
		}
	}
}

// TestColumnsVanish narrows the window: columns go in the order of their importance, but what the rows are sorted by.
func TestColumnsVanish(t *testing.T) {
	m := minute(Options{})
	for _, c := range []struct {
		width int
		heads string
	}{
		{120, "NAME▲ STATE IN OUT PPS IN PPS OUT DROP/S REASON PATH PMTU SEEN LAST MINUTE"},
		{80, "NAME▲ STATE IN OUT DROP/S REASON PATH PMTU SEEN LAST MINUTE"},
		{66, "NAME▲ STATE IN OUT DROP/S REASON SEEN LAST MINUTE"},
		{50, "NAME▲ STATE IN OUT DROP/S REASON SEEN"},
		{30, "NAME▲ STATE IN OUT"},
		{10, "NAME▲"},
	} {
		m.resize(c.width, 24)
		if got := strings.Join(strings.Fields(m.line("NAME")), " "); got != c.heads && got != c.heads+"…" {
			t.Errorf("%d columns: %q, want %q", c.width, got, c.heads)
		}
	}
	m.resize(30, 24)
	m.types("> > > > >")
	if got := strings.Join(strings.Fields(m.line("NAME")), " "); got != "NAME STATE IN PPS OUT▼" {
		t.Errorf("sorted by PPS OUT: %q", got)
	}
}

// orderNames is the names of the tunnels in the table, from above.
func (m *model) orderNames() string {
	var names []string
	for _, r := range m.order {
		names = append(names, r.name)
	}
	return strings.Join(names, " ")
}

func TestSort(t *testing.T) {
	m := minute(Options{})
	m.resize(120, 24)
	for _, c := range []struct{ head, want string }{
		{"NAME▲", "backup old paris tun01 tun02 tun10"},
		{"STATE▲", "old backup tun10 paris tun01 tun02"},
		{"IN▼", "paris tun01 tun02 backup old tun10"},
		{"OUT▼", "paris tun01 tun02 backup old tun10"},
		{"PPS IN▼", "paris tun01 tun02 backup old tun10"},
		{"PPS OUT▼", "paris tun01 tun02 backup old tun10"},
		{"DROP/S▼", "backup tun01 old paris tun02 tun10"},
		{"REASON▼", "tun01 backup old paris tun02 tun10"},
		{"PATH▲", "paris old tun01 tun02 tun10 backup"},
		{"PMTU▲", "backup paris old tun01 tun02 tun10"},
		{"SEEN▲", "paris tun01 tun02 tun10 backup old"},
		{"LAST MINUTE▼", "paris tun01 tun02 backup old tun10"},
		{"NAME▲", "backup old paris tun01 tun02 tun10"},
	} {
		if head := m.line("NAME"); !strings.Contains(head, c.head) || m.orderNames() != c.want {
			t.Errorf("%q: %s in the order %s, want %s", head, c.head, m.orderNames(), c.want)
		}
		m.types(">")
	}
	m.types("< r")
	if want := "tun10 tun02 tun01 paris old backup"; m.orderNames() != want || !strings.Contains(m.line("NAME"), "NAME▼") {
		t.Errorf("reversed: %s, want %s", m.orderNames(), want)
	}
}

func TestFilter(t *testing.T) {
	m := minute(Options{})
	m.resize(80, 24)
	for _, c := range []struct{ keys, want string }{
		{"/ T U N", "tun01 tun02 tun10"}, {"backspace backspace backspace p a r", "paris"}, {"backspace t", "backup"}, {"ctrl+u 1 9 2 . 1 6 8 . 1 . 1 3", "backup old tun02"},
		{"ctrl+u t o o _", ""}, {"ctrl+u r c v b", "tun01"}, {"ctrl+u f a s t", "paris"}, {"ctrl+u d o w n", "old"}, {"enter", "old"}, {"esc", "backup old paris tun01 tun02 tun10"},
		{"/ q esc", "backup old paris tun01 tun02 tun10"},
	} {
		m.types(c.keys)
		if got := m.orderNames(); got != c.want {
			t.Errorf("%s: %s, want %s", c.keys, got, c.want)
		}
	}
	m.types("/")
	m.Update(tea.PasteMsg{Content: "tun\x1b01\n"})
	if m.filter != "tun?01?" {
		t.Errorf("pasted: %q", m.filter)
	}
	if v := m.View(); v.Cursor == nil || v.Cursor.X != len("/tun?01?") || v.Cursor.Y != 23 {
		t.Errorf("the cursor is at %+v", v.Cursor)
	}
	m.types("esc")
	m.Update(tea.PasteMsg{Content: "q"})
	if m.filter != "" || m.View().Cursor != nil {
		t.Error("what is pasted goes to the filter only while that is typed")
	}
}

// TestCursor follows a tunnel that was selected, and stays at the top before.
func TestCursor(t *testing.T) {
	m := minute(Options{})
	m.resize(80, 24)
	m.types("> >")
	if got := m.selected().name; got != "paris" {
		t.Errorf("not moved: %s", got)
	}
	m.types("down >")
	m.types("> > >") // to DROP/S
	if got := m.selected().name; got != "tun01" {
		t.Errorf("moved to tun01, and then: %s", got)
	}
	m.types("end enter")
	if got := m.opened.name; got != "tun10" {
		t.Errorf("opened %s", got)
	}
	m.types("esc home r")
	if m.cursor != 0 {
		t.Errorf("home, and then at %d", m.cursor)
	}
}

// TestQuit ends by each key, and where it is no text.
func TestQuit(t *testing.T) {
	for keys, want := range map[string]bool{
		"q": true, "Q": true, "ctrl+c": true, "enter q": true, "? q": true, "/ q": false, "/ ctrl+c": true, "enter esc": false, "x": false,
	} {
		m := minute(Options{})
		m.resize(80, 24)
		cmd := m.types(keys)
		got := false
		if cmd != nil {
			_, got = cmd().(tea.QuitMsg)
		}
		if got != want {
			t.Errorf("%s quits: %v", keys, got)
		}
	}
}

// TestProcesses has a daemon that ends and comes back, and one that does not answer.
func TestProcesses(t *testing.T) {
	m := newModel(context.Background(), nil, Options{})
	m.resize(80, 24)
	at := start
	take := func(err error, all ...control.Status) {
		at = at.Add(time.Second)
		m.Update(sample{asked: at, at: at, all: all, err: err})
	}
	traffic := idle("tun01", 129)
	passes(&traffic.RX, at, 100, 125000)
	take(nil, process(1, traffic))
	if got := m.line("tun01"); !strings.Contains(got, "1.0M") {
		t.Errorf("the first rate is the daemon's: %q", got)
	}
	m.types("enter")
	take(nil)
	for _, want := range []string{"tun01  gone", "17:41:00 process 1 ended, with 1 tunnel"} {
		if m.line(want) == "" {
			t.Errorf("no %q in\n%s", want, m.screen())
		}
	}
	m.types("esc")
	if got := m.screen(); !strings.Contains(got, "no tunnels: make one") {
		t.Errorf("without tunnels: %s", got)
	}
	take(nil, process(2, idle("tun01", 129)))
	if got := m.line("process"); got != "17:41:01 process 2 is new, with 1 tunnel\n" {
		t.Errorf("got %q", got)
	}
	if bars := m.order[0].minute(m.at, span); bars[57] != 1e6 || bars[58] != unknown || bars[59] != 0 {
		t.Errorf("the last minute is %v", bars[55:])
	}
	for range 10 {
		take(nil, process(2, idle("tun01", 129)))
	}
	if got := m.line("quit"); got == "" {
		t.Errorf("old news stay: %s", m.screen())
	}
	again := process(2, idle("tun01", 129))
	again.Process.Started = at
	take(nil, again)
	if got := m.line("process"); got != "17:41:12 process 2 ended, with 1 tunnel; process 2 is new, with 1 tunnel\n" {
		t.Errorf("with the same id: %q", got)
	}
	take(errors.New("process 2\x1b: it hangs\nno answer"))
	if got := m.line("hangs"); got != "process 2?: it hangs; no answer\n" || m.line("tun01") == "" || m.line("17:41:12") == "" {
		t.Errorf("%q in\n%s", got, m.screen())
	}
	take(errors.New("process 2 hangs"), process(3, idle("tun03", 3)))
	if m.line("hangs") == "" || m.line("tun03") == "" || strings.Contains(m.screen(), "ended") {
		t.Errorf("with the answer of one of two:\n%s", m.screen())
	}
}

// TestNames shows some tunnels only.
func TestNames(t *testing.T) {
	m := minute(Options{Names: []string{"tun02", "tun03", "tun\x1b"}})
	m.resize(80, 24)
	if got := m.orderNames(); got != "tun02" {
		t.Errorf("shows %s", got)
	}
	if got := m.line("goipip top"); !strings.Contains(got, "1 tunnel: 1 up  not there: tun03, tun?") {
		t.Errorf("title %q", got)
	}
	m.Update(sample{at: m.at.Add(time.Second)})
	if m.line("waiting for tun02, tun03, tun?") == "" {
		t.Errorf("none of them is there:\n%s", m.screen())
	}
}

// TestHostileTexts has control characters wherever another process can have put some.
func TestHostileTexts(t *testing.T) {
	const evil = "\x1b[2J\r\n\u202e\x9b"
	m := newModel(context.Background(), nil, Options{})
	h := idle("tun"+evil, 1)
	h.Trouble, h.Underlay.Transmit, h.Underlay.WhyRaw = "no"+evil, "raw"+evil, evil
	h.TX.Drops = map[string]uint64{"reason" + evil: 1}
	for i := range 2 {
		at := start.Add(time.Duration(i) * time.Second)
		h.TX.Drops = map[string]uint64{"reason" + evil: uint64(1 + i)}
		m.Update(sample{at: at, all: []control.Status{process(1, h)}})
	}
	m.resize(120, 50)
	for _, keys := range []string{"", "enter"} {
		m.types(keys)
		got := m.View().Content
		for _, c := range []string{"\x1b[2J", "\r", "\u202e", "\x9b"} {
			if strings.Contains(got, c) {
				t.Errorf("after %q: %q in %q", keys, c, got)
			}
		}
		if n := strings.Count(got, "\n"); n != 49 {
			t.Errorf("after %q: %d lines", keys, n+1)
		}
	}
}

// TestSameName has two links of one name, one of them in another namespace.
func TestSameName(t *testing.T) {
	m := newModel(context.Background(), nil, Options{})
	m.Update(sample{at: start, all: []control.Status{process(1, idle("tun01", 1)), process(2, idle("tun01", 2))}})
	m.resize(80, 24)
	m.types("down enter")
	if m.orderNames() != "tun01 tun01" || m.line("192.168.1.2") == "" {
		t.Errorf("%s:\n%s", m.orderNames(), m.screen())
	}
}

// thousand is a model with so many tunnels.
func thousand() (*model, []control.TunnelStatus) {
	m := newModel(context.Background(), nil, Options{})
	var tunnels []control.TunnelStatus
	for i := range 1000 {
		tunnels = append(tunnels, idle(fmt.Sprintf("tun%d", i), i%250))
	}
	m.Update(sample{at: start, all: []control.Status{process(1, tunnels...)}})
	m.resize(80, 24)
	return m, tunnels
}

// TestScroll goes through more tunnels than the window has lines for.
func TestScroll(t *testing.T) {
	m, _ := thousand()
	for _, c := range []struct{ key, selected, title string }{
		{"down", "tun1", "(1 to 19)"}, {"pgdown", "tun20", "(3 to 21)"}, {"up", "tun19", "(3 to 21)"}, {"end", "tun999", "(982 to 1000)"},
		{"pgup", "tun980", "(981 to 999)"}, {"up", "tun979", "(980 to 998)"}, {"home", "tun0", "(1 to 19)"}, {"up", "tun0", "(1 to 19)"},
	} {
		m.types(c.key)
		if got := m.line("►"); !strings.Contains(got, c.selected+" ") || m.line(c.title) == "" {
			t.Errorf("%s: %q, and not %s, in\n%s", c.key, got, c.selected, m.screen())
		}
	}
	m.types("end")
	m.resize(80, 10)
	if got := m.line("►"); !strings.Contains(got, "tun999 ") {
		t.Errorf("in a lower window: %q", got)
	}
}

// Drawing costs the same with a thousand tunnels as with a few.
func BenchmarkView(b *testing.B) {
	m, _ := thousand()
	for b.Loop() {
		m.View()
	}
}

func BenchmarkTake(b *testing.B) {
	m, tunnels := thousand()
	at := start
	for b.Loop() {
		at = at.Add(time.Second)
		m.Update(sample{at: at, all: []control.Status{process(1, tunnels...)}})
	}
}
