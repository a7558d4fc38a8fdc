//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
	"goipip/internal/show"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// session is a command on a terminal of its own.
type session struct {
	cmd   *exec.Cmd
	ptmx  *os.File // the other side of tty
	tty   *os.File // the command's terminal
	modes unix.Termios
	ended chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// start runs cmd on a terminal of 80×24.
func start(t *testing.T, cmd *exec.Cmd) *session {
	t.Helper()
	ptmx, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{cmd: cmd, ptmx: ptmx, tty: tty, ended: make(chan struct{})}
	t.Cleanup(func() { tty.Close(); ptmx.Close() })
	s.resize(t, 80, 24)
	s.modes = s.termios(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); <-s.ended })
	go func() {
		cmd.Wait()
		close(s.ended)
	}()
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := ptmx.Read(b)
			s.mu.Lock()
			s.out.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *session) termios(t *testing.T) unix.Termios {
	t.Helper()
	modes, err := unix.IoctlGetTermios(int(s.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *modes
}

func (s *session) resize(t *testing.T, columns, lines uint16) {
	t.Helper()
	if err := pty.Setsize(s.ptmx, &pty.Winsize{Cols: columns, Rows: lines}); err != nil {
		t.Fatal(err)
	}
}

// output is all that the command wrote.
func (s *session) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// window is the lines that the last complete frame shows; nil while there is none.
func (s *session) window() []string {
	frames := strings.Split(s.output(), beginUpdate+home)
	for i := len(frames) - 1; i > 0; i-- {
		if frame, _, ok := strings.Cut(frames[i], endUpdate); ok {
			return strings.Split(strings.NewReplacer(eraseLine, "", eraseBelow, "").Replace(frame), "\r\n")
		}
	}
	return nil
}

// waitWindow waits until the window has text.
func (s *session) waitWindow(t *testing.T, text string) {
	t.Helper()
	labtest.WaitFor(t, fmt.Sprintf("%q in the window", text), func() bool {
		return strings.Contains(strings.Join(s.window(), "\n"), text)
	})
}

// waitEnd waits for the end, and returns the exit status.
func (s *session) waitEnd(t *testing.T) int {
	t.Helper()
	labtest.Within(t, "the end of the command", s.ended)
	return s.cmd.ProcessState.ExitCode()
}

// checkRestored checks that the terminal is as it was before the command. The kernel may
// still have the last of the output.
func (s *session) checkRestored(t *testing.T) {
	t.Helper()
	labtest.WaitFor(t, "the end of the screen", func() bool { return strings.Contains(s.output(), leaveScreen) })
	out := s.output()
	if n, m := strings.Count(out, enterScreen), strings.Count(out, leaveScreen); n != m || strings.LastIndex(out, enterScreen) > strings.LastIndex(out, leaveScreen) {
		t.Errorf("the screen was entered %d times, and left %d times: %q", n, m, out)
	}
	if modes := s.termios(t); modes != s.modes {
		t.Errorf("the terminal's modes were %+v, and are %+v", s.modes, modes)
	}
}

// sgr is the sequences that set colours.
var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestShowOnTerminal(t *testing.T) {
	t.Parallel()
	const red = "\x1b[1;31mdown\x1b[0m"
	down := tunnelsNamed("tun01")
	down[0].Tunnels[0].Up = false
	text, err := json.Marshal(down)
	if err != nil {
		t.Fatal(err)
	}
	for env, colour := range map[string]bool{"TERM=xterm": true, "NO_COLOR=1": false, "TERM=dumb": false, "TERM=": false} {
		t.Run(env, func(t *testing.T) {
			fetched := newShown(t)
			fetched.set(t, string(text))
			cmd := fetched.command(t, "show")
			cmd.Env = append(cmd.Env, env)
			s := start(t, cmd)
			if status := s.waitEnd(t); status != 0 {
				t.Errorf("status %d", status)
			}
			labtest.WaitFor(t, "the last line", func() bool { return strings.Contains(s.output(), "process ") })
			out := s.output()
			if strings.Contains(out, red) != colour || !colour && strings.Contains(out, "\x1b") {
				t.Errorf("with colours: %v, but got %q", colour, out)
			}
			for l := range strings.SplitSeq(sgr.ReplaceAllString(out, ""), "\r\n") {
				if w := utf8.RuneCountInString(l); w > 80 {
					t.Errorf("%d columns: %q", w, l)
				}
			}
		})
	}
}

// TestScreenErasesBeforeText looks at the sequences of a frame: to erase after a text that
// is as wide as the window would erase its last character.
func TestScreenErasesBeforeText(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s := screen{out: terminal{w}}
	if err := s.draw([]string{"one", "", "three"}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1000)
	n, _ := r.Read(b)
	want := beginUpdate + home + eraseLine + "one\r\n" + eraseLine + "\r\n" + eraseBelow + "three" + endUpdate
	if got := string(b[:n]); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestShowWatchOnTerminal(t *testing.T) {
	t.Parallel()
	fetched := newShown(t, "tun01", "tun02")
	s := start(t, fetched.command(t, "show", "-watch"))
	s.waitWindow(t, "2 tunnels")
	if out := s.output(); !strings.HasPrefix(out, enterScreen) {
		t.Errorf("begins with %q", out)
	}
	if modes := s.termios(t); modes.Lflag&(unix.ICANON|unix.ECHO) != 0 || modes.Lflag&unix.ISIG == 0 {
		t.Errorf("modes %+v", modes)
	}
	s.ptmx.WriteString("~") // no key, and not to be seen

	fetched.tunnels(t, "tun03")
	s.waitWindow(t, "\x1b[1mtun03\x1b[0m: \x1b[32mup")
	fetched.set(t, "a failure")
	s.waitWindow(t, "\x1b[1;31ma failure")
	fetched.tunnels(t)
	s.waitWindow(t, show.NoTunnels[:30])

	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("tun%d", i))
	}
	fetched.tunnels(t, names...)
	s.waitWindow(t, "not shown")
	for _, size := range []struct{ columns, lines uint16 }{{80, 24}, {60, 10}, {132, 43}, {20, 3}} {
		s.resize(t, size.columns, size.lines)
		labtest.WaitFor(t, fmt.Sprintf("a window of %v", size), func() bool { return len(s.window()) == int(size.lines) })
	}

	s.ptmx.WriteString("q")
	if status := s.waitEnd(t); status != 0 {
		t.Errorf("status %d", status)
	}
	s.checkRestored(t)
	if strings.Contains(s.output(), "~") {
		t.Errorf("what was typed shows: %q", s.output())
	}
}

// TestShowWatchRestoresTheTerminal ends the command in each way.
func TestShowWatchRestoresTheTerminal(t *testing.T) {
	signal := func(sig unix.Signal) func(*session) {
		return func(s *session) { s.cmd.Process.Signal(sig) }
	}
	typed := func(keys string) func(*session) {
		return func(s *session) { s.ptmx.WriteString(keys) }
	}
	for name, end := range map[string]func(*session){
		"Ctrl-C": typed("\x03"), "Ctrl-backslash": typed("\x1c"), "q": typed("q"), "Q": typed("xQ"),
		"SIGTERM": signal(unix.SIGTERM), "SIGHUP": signal(unix.SIGHUP),
	} {
		for _, when := range []string{"while it waits", "while it fetches"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				fetched := newShown(t, "tun01")
				s := start(t, fetched.command(t, "show", "--watch"))
				s.waitWindow(t, "tun01")
				if when == "while it fetches" {
					fetched.set(t, "hang")
					labtest.WaitFor(t, "a fetch", func() bool { _, err := os.Stat(fetched.path + hanging); return err == nil })
				}
				end(s)
				if status := s.waitEnd(t); status != 0 {
					t.Errorf("status %d, %q", status, s.output())
				}
				s.checkRestored(t)
			})
		}
	}
}

// TestShowWatchStops presses Ctrl-Z, and goes on as the shell's fg does.
func TestShowWatchStops(t *testing.T) {
	t.Parallel()
	fetched := newShown(t, "tun01")
	s := start(t, fetched.command(t, "show", "--watch"))
	s.waitWindow(t, "tun01")
	s.ptmx.WriteString("\x1a")
	labtest.WaitFor(t, "the command to stop", func() bool {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
		_, state, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(state, "T")
	})
	s.checkRestored(t)

	fetched.tunnels(t, "tun02")
	s.cmd.Process.Signal(unix.SIGCONT)
	s.waitWindow(t, "tun02")
	if modes := s.termios(t); modes.Lflag&unix.ECHO != 0 {
		t.Error("what is typed shows again")
	}
	s.ptmx.WriteString("\x03")
	if status := s.waitEnd(t); status != 0 {
		t.Errorf("status %d", status)
	}
	labtest.WaitFor(t, "both ends of the screen", func() bool { return strings.Count(s.output(), leaveScreen) == 2 })
	s.checkRestored(t)
}

// TestShowWatchWithoutReader has a terminal that takes no output, after Ctrl-S.
func TestShowWatchWithoutReader(t *testing.T) {
	t.Parallel()
	s := start(t, newShown(t, "tun01").command(t, "show", "--watch"))
	s.waitWindow(t, "tun01")
	s.ptmx.WriteString("\x13")
	labtest.WaitFor(t, "the command to write", func() bool {
		calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", s.cmd.Process.Pid))
		return slices.ContainsFunc(calls, func(path string) bool {
			call, _ := os.ReadFile(path)
			return strings.HasPrefix(string(call), fmt.Sprintf("%d 0x1 ", unix.SYS_WRITE))
		})
	})
	labtest.WaitFor(t, "the end of the command", func() bool {
		s.cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-s.ended:
			return true
		default:
			return false
		}
	})
}

// TestShowInterrupted presses Ctrl-C while a fetch hangs.
func TestShowInterrupted(t *testing.T) {
	fetched := newShown(t)
	fetched.set(t, "hang")
	s := start(t, fetched.command(t, "show"))
	labtest.WaitFor(t, "a fetch", func() bool { _, err := os.Stat(fetched.path + hanging); return err == nil })
	s.ptmx.WriteString("\x03")
	if status := s.waitEnd(t); status != 1 || strings.Contains(s.output(), "goipip") {
		t.Errorf("status %d, %q", status, s.output())
	}
}

// TestShowWatchDumbTerminal has a terminal without control sequences.
func TestShowWatchDumbTerminal(t *testing.T) {
	t.Parallel()
	cmd := newShown(t, "tun01").command(t, "show", "--watch")
	cmd.Env = append(cmd.Env, "TERM=dumb")
	s := start(t, cmd)
	labtest.WaitFor(t, "two blocks", func() bool { return strings.Count(s.output(), "tun01: up\r\n") >= 2 })
	s.ptmx.WriteString("\x03")
	if status := s.waitEnd(t); status != 0 || strings.Contains(s.output(), "\x1b") {
		t.Errorf("status %d, %q", status, s.output())
	}
}

// TestShowWatchInPipe reads a few blocks, and documents.
func TestShowWatchInPipe(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"show", "--watch"}, {"show", "--watch", "--json"}} {
		fetched := newShown(t, "tun01")
		cmd := fetched.command(t, args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var read strings.Builder
		next := func() (text string) {
			b := make([]byte, 1<<16) // each is one write
			n, _ := out.Read(b)
			read.Write(b[:n])
			return string(b[:n])
		}
		first := next()
		fetched.tunnels(t)
		second := next()
		if args[len(args)-1] == "--json" {
			for i, text := range []string{first, second} {
				var all []control.Status
				if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 || len(all[0].Tunnels) != 1-i || strings.Index(text, "\n") != len(text)-1 {
					t.Errorf("document %d: %q, %v", i, text, err)
				}
			}
		} else if !strings.Contains(first, "\n\ntun01: up\n") || !strings.HasSuffix(first, "\n\n") || !strings.HasSuffix(second, show.NoTunnels+"\n\n") {
			t.Errorf("got %q", read.String())
		}
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
		if status := cmd.ProcessState.ExitCode(); status != 0 {
			t.Errorf("status %d", status)
		}
	}
}
