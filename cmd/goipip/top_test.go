//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
	"golang.org/x/sys/unix"
)

// display is a session that a terminal emulator shows. The terminal answers what it is asked.
type display struct {
	*session
	vt    *vt.Emulator
	seen  int // bytes of the output
	modes map[ansi.Mode]bool
}

// startDisplay runs cmd on a terminal of 80×24 that is shown.
func startDisplay(t *testing.T, cmd *exec.Cmd) *display {
	t.Helper()
	d := &display{start(t, cmd), vt.NewEmulator(80, 24), 0, map[ansi.Mode]bool{}}
	d.vt.SetCallbacks(vt.Callbacks{
		EnableMode:  func(m ansi.Mode) { d.modes[m] = true },
		DisableMode: func(m ansi.Mode) { d.modes[m] = false },
	})
	go io.Copy(d.ptmx, d.vt)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the window at the end:\n%s", strings.Join(d.look(), "\n"))
		}
	})
	t.Cleanup(func() { d.vt.InputPipe().(io.Closer).Close() }) // which ends its answers
	return d
}

// look returns the lines of the window.
func (d *display) look() []string {
	out := d.output()
	d.vt.WriteString(out[d.seen:])
	d.seen = len(out)
	lines := strings.Split(d.vt.String(), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return lines
}

// line returns the first line with a text.
func (d *display) line(text string) string {
	lines := d.look()
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, text) }); i >= 0 {
		return lines[i]
	}
	return ""
}

// waitFor waits until a line has all of these texts.
func (d *display) waitFor(t *testing.T, texts ...string) {
	t.Helper()
	labtest.WaitFor(t, fmt.Sprintf("a line with %q", texts), func() bool {
		return slices.ContainsFunc(d.look(), func(l string) bool {
			return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(l, text) })
		})
	})
}

func (d *display) types(keys string) { d.ptmx.WriteString(keys) }

func (d *display) resize(t *testing.T, columns, lines int) {
	t.Helper()
	d.look()
	d.vt.Resize(columns, lines)
	d.session.resize(t, uint16(columns), uint16(lines))
}

// checkEnd waits for the end, and checks that the terminal is as it was.
func (d *display) checkEnd(t *testing.T) {
	t.Helper()
	if status := d.waitEnd(t); status != 0 {
		t.Errorf("status %d: %s", status, strings.Join(d.look(), "\n"))
	}
	d.checkLeft(t)
}

// checkLeft checks that the terminal is as it was.
func (d *display) checkLeft(t *testing.T) {
	t.Helper()
	labtest.WaitFor(t, "the end of the screen", func() bool { d.look(); return !d.vt.IsAltScreen() })
	labtest.WaitFor(t, "the cursor", func() bool { d.look(); return !d.vt.CursorHidden() })
	for mode, on := range d.modes {
		if on && mode != ansi.ModeTextCursorEnable {
			t.Errorf("mode %v of the terminal is left", mode)
		}
	}
	if modes := d.termios(t); modes != d.session.modes {
		t.Errorf("the terminal's modes were %+v, and are %+v", d.session.modes, modes)
	}
	if got := strings.Join(d.look(), ""); got != "" {
		t.Errorf("left on the screen: %q", got)
	}
}

// TestTop watches two tunnels of a daemon: one with traffic, and one without a route.
func TestTop(t *testing.T) {
	labtest.Need(t, "root", "tun", "ping")
	lab := labtest.New(t)
	var hosts [2]*netlab.Host
	for i := range hosts {
		var err error
		if hosts[i], err = lab.Host(fmt.Sprint("host", i)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := hosts[0], hosts[1]
	for _, err := range []error{lab.Veth(a, "eth0", b, "eth0"), a.AddAddr("eth0", "192.0.2.1/24"), b.AddAddr("eth0", "192.0.2.2/24")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	goipip := labtest.Build(t, "goipip/cmd/goipip")
	starts := func(h *netlab.Host, args ...string) *netlab.Process {
		p, err := h.Start(exec.Command(args[0], args[1:]...))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	config := filepath.Join(t.TempDir(), "goipip.toml")
	if err := os.WriteFile(config, []byte(`
[tunnel.tun01]
local = "192.0.2.1"
remote = "192.0.2.2"
address = "172.16.1.1"
peer = "172.16.1.2"

[tunnel.tun02]
local = "192.0.2.1"
remote = "203.0.113.9"
address = "172.16.2.1"
peer = "172.16.2.2"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	starts(b, goipip, "-local", "192.0.2.2", "-remote", "192.0.2.1", "-name", "tun01", "-address", "172.16.1.2", "-peer", "172.16.1.1")
	daemon := starts(a, goipip, "run", "--config", config)
	labtest.WaitFor(t, "the daemon", func() bool {
		out, err := a.Output(goipip, "show", "tun02")
		return err == nil && out != ""
	})
	starts(a, "ping", "-q", "-i", "0.02", "172.16.1.2")
	starts(a, "ping", "-q", "-i", "0.02", "172.16.2.2")

	cmd := exec.CommandContext(labtest.Context(t), goipip, "top", "--interval", "200ms")
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "NO_COLOR=")
	var d *display
	if err := a.Do(func() error { d = startDisplay(t, cmd); return nil }); err != nil {
		t.Fatal(err)
	}
	d.waitFor(t, "NAME▲", "STATE", "DROP/S", "REASON", "LAST MINUTE")
	d.waitFor(t, "2 tunnels: 1 up, 1 no path")
	d.waitFor(t, "tun01", "up", "k", "1500", "now", "█")
	d.waitFor(t, "tun02", "no path", "no_route", "raw")
	d.waitFor(t, "q quit")
	if !d.vt.IsAltScreen() || !d.vt.CursorHidden() {
		t.Error("it does not have a screen of its own, or shows a cursor there")
	}

	d.types("\x1b[B") // the arrow down
	d.waitFor(t, "► tun02")
	d.types(">>")
	d.waitFor(t, "IN▼")
	d.types("/tUN01\r")
	d.waitFor(t, "1 of 2 tunnels with /tUN01")
	d.types("\r")
	d.waitFor(t, "outer ", "192.0.2.1 → 192.0.2.2")
	d.waitFor(t, "path MTU", "1500, for inner packets of up to 1480 bytes")
	d.resize(t, 120, 40)
	d.waitFor(t, "process ", "goipip run") // which the lower window had no room for
	d.types("\x1b")
	d.waitFor(t, "PPS OUT")
	d.types("\x1b")
	d.waitFor(t, "2 tunnels")
	d.resize(t, 50, 12)
	d.waitFor(t, "SEEN")
	if l := d.line("NAME"); strings.Contains(l, "PPS") {
		t.Errorf("in 50 columns: %q", l)
	}

	if err := daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	d.waitFor(t, fmt.Sprintf("process %d ended, with 2 tunnels", daemon.Pid()))
	d.waitFor(t, "no tunnels")
	daemon = starts(a, goipip, "run", "--config", config)
	d.waitFor(t, fmt.Sprintf("process %d is new", daemon.Pid()))
	d.waitFor(t, "tun01", "up", "now")

	d.resize(t, 80, 24)
	d.types("?")
	d.waitFor(t, "SEEN", "when the last packet was received")
	d.types("q")
	d.checkEnd(t)
}

// TestTopRestoresTheTerminal ends the command in each way.
func TestTopRestoresTheTerminal(t *testing.T) {
	typed := func(keys string) func(*display) { return func(d *display) { d.types(keys) } }
	sent := func(sig unix.Signal) func(*display) { return func(d *display) { d.cmd.Process.Signal(sig) } }
	for name, end := range map[string]func(*display){
		"q": typed("q"), "Ctrl-C": typed("\x03"), "Ctrl-C while a filter is typed": typed("/q\x03"),
		"SIGTERM": sent(unix.SIGTERM), "SIGINT": sent(unix.SIGINT), "SIGHUP": sent(unix.SIGHUP),
	} {
		for _, when := range []string{"while it waits", "while it fetches"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				fetched := newShown(t, "tun01")
				d := startDisplay(t, fetched.command(t, "top", "--interval", "100ms"))
				d.waitFor(t, "► tun01")
				d.waitFor(t, "q quit")
				if when == "while it fetches" {
					fetched.set(t, "hang")
					labtest.WaitFor(t, "a fetch", func() bool { _, err := os.Stat(fetched.path + hanging); return err == nil })
				}
				end(d)
				d.checkEnd(t)
			})
		}
	}
}

// TestTopStops presses Ctrl-Z, under a shell with job control, and where there is none.
func TestTopStops(t *testing.T) {
	fetched := newShown(t, "tun01")
	top := fetched.command(t, "top", "--interval", "100ms")

	t.Run("shell", func(t *testing.T) {
		cmd := exec.CommandContext(labtest.Context(t), "sh", "-c", `set -m; "$@"; echo "stopped: $?"; read go; fg`, "sh", top.Path, "top", "--interval", "100ms")
		cmd.Env = top.Env
		d := startDisplay(t, cmd)
		d.waitFor(t, "► tun01")
		d.types("\x1a")
		d.waitFor(t, fmt.Sprint("stopped: ", 128+int(syscall.SIGTSTP)))
		if modes := d.termios(t); d.vt.IsAltScreen() || modes != d.session.modes {
			t.Errorf("while it is stopped: the terminal's modes were %+v, and are %+v", d.session.modes, modes)
		}
		d.types("\r")
		d.waitFor(t, "► tun01")
		d.types("q")
		if status := d.waitEnd(t); status != 0 {
			t.Errorf("status %d", status)
		}
	})
	t.Run("none", func(t *testing.T) {
		cmd := exec.CommandContext(labtest.Context(t), top.Path, "top", "--interval", "100ms")
		cmd.Env = top.Env
		d := startDisplay(t, cmd)
		d.waitFor(t, "► tun01")
		d.types("\x1a")
		labtest.WaitFor(t, "the end of the screen", func() bool { d.look(); return !d.vt.IsAltScreen() })
		d.waitFor(t, "► tun01")
		d.types("q")
		d.checkEnd(t)
	})
}

// TestTopWithoutColour has no colours with NO_COLOR, and colours else.
func TestTopWithoutColour(t *testing.T) {
	const green = "\x1b[32m"
	for env, colour := range map[string]bool{"NO_COLOR=": true, "NO_COLOR=1": false, "NO_COLOR=yes": false} {
		cmd := newShown(t, "tun01", "tun02").command(t, "top", "--interval", "100ms")
		cmd.Env = append(cmd.Env, env, "COLORTERM=truecolor")
		d := startDisplay(t, cmd)
		d.waitFor(t, "tun02", "up")
		if got := strings.Contains(d.output(), green); got != colour {
			t.Errorf("%s: colours: %v in %q", env, got, d.output())
		}
		d.types("q")
		d.checkEnd(t)
	}
}

// TestTopErrors starts it where it cannot run.
func TestTopErrors(t *testing.T) {
	s := newShown(t, "tun01", "tun02")
	for _, c := range []struct {
		args   string
		status int
		stderr string
	}{
		{"top", 1, "goipip: standard output is no terminal, which goipip top needs: goipip show --watch does without\n"},
		{"top --interval 99ms", 2, "goipip: --interval 99ms: must be 100ms to 1m\nTry 'goipip --help'.\n"},
		{"top --interval 61s", 2, "goipip: --interval 1m1s: must be 100ms to 1m\nTry 'goipip --help'.\n"},
		{"top --interval 1", 2, "goipip: --interval 1: time: missing unit in duration \"1\"\nTry 'goipip --help'.\n"},
	} {
		if status, stdout, stderr := s.run(t, strings.Fields(c.args)...); status != c.status || stdout != "" || stderr != c.stderr {
			t.Errorf("%s: status %d, %q, %q", c.args, status, stdout, stderr)
		}
	}
	for name, c := range map[string]struct {
		fetched, args, env string
		want               string
	}{
		"dumb":    {"", "top", "TERM=dumb", "this terminal (TERM=dumb) cannot move its cursor, as goipip top needs: goipip show --watch does without"},
		"unknown": {"", "top tun01 tun03", "", `no tunnel "tun03": there are tun01, tun02`},
		"failure": {"a failure", "top", "", "a failure"},
	} {
		s := newShown(t, "tun01", "tun02")
		if c.fetched != "" {
			s.set(t, c.fetched)
		}
		cmd := s.command(t, strings.Fields(c.args)...)
		cmd.Env = append(cmd.Env, c.env)
		d := start(t, cmd)
		if status := d.waitEnd(t); status != 1 {
			t.Errorf("%s: status %d", name, status)
		}
		labtest.WaitFor(t, "the error", func() bool { return strings.HasSuffix(d.output(), "\n") })
		if got := d.output(); got != "goipip: "+c.want+"\r\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
