//go:build linux

package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"

	"golang.org/x/sys/unix"
)

func TestShow(t *testing.T) {
	c := newComputer(t)
	r := c.tries(t, "goipip show")
	if want := "no tunnels in this network namespace: make one with goipip tunnel add\n"; r.status != 0 || r.stdout != "" || r.stderr != want {
		t.Errorf("without tunnels: %+v", r)
	}
	if out := c.types(t, "goipip show --json"); out != "[]\n" {
		t.Errorf("without tunnels, as JSON: %s", out)
	}
	c.types(t, fmt.Sprintf(add, "tun01", 1))
	out := c.types(t, "goipip show")
	for _, want := range []string{"● tun01: link down\n", "trouble  the local address is not on this host", "local 192.0.2.1, remote 198.51.100.1", "started by goipip tunnel add"} {
		if !strings.Contains(out, want) {
			t.Errorf("goipip show does not show %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("colours without a terminal: %q", out)
	}
	c.types(t, fmt.Sprintf(add, "tun02", 2)+" && ip link set tun02 up")
	if out := c.types(t, "goipip show"); strings.Count(out, "\n") != 3 || !strings.Contains(out, "\ntun02   no path  192.0.2.1  198.51.100.2") {
		t.Errorf("two tunnels:\n%s", out)
	}
	if out := c.types(t, "goipip show tun02"); !strings.HasPrefix(out, "● tun02: no path\n") {
		t.Errorf("one by name:\n%s", out)
	}
	r = c.tries(t, "goipip show tun03")
	if want := "goipip: no tunnel \"tun03\": there are tun01, tun02\n"; r.status != 1 || r.stdout != "" || r.stderr != want {
		t.Errorf("an unknown one: %+v", r)
	}
	if r := c.tries(t, "goipip show tun01 tun02"); r.status != 2 {
		t.Errorf("two names: %+v", r)
	}
	for _, command := range []string{"show", "show --json", "tunnel show", "--help", "version --help", "--version"} {
		if r := c.tries(t, "goipip "+command+" >/dev/full"); r.status != 1 || !strings.Contains(r.stderr, "no space left on device") {
			t.Errorf("goipip %s >/dev/full: %+v", command, r)
		}
	}
	var statuses []control.Status
	if err := json.Unmarshal([]byte(c.types(t, "goipip show -json tun01")), &statuses); err != nil {
		t.Fatal(err)
	}
	if len(statuses) != 1 || statuses[0].Process.PID != c.daemon(t) || statuses[0].Process.Role != control.RoleBackground ||
		len(statuses[0].Tunnels) != 1 || statuses[0].Tunnels[0].Config.Name != "tun01" || statuses[0].Tunnels[0].Up {
		t.Errorf("as JSON: %+v", statuses)
	}
	out = c.types(t, "timeout 1.5 \"$GOIPIP\" show --json --watch || true")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) < 2 || json.Unmarshal([]byte(lines[1]), &statuses) != nil {
		t.Errorf("watched as JSON:\n%s", out)
	}
	for line, want := range map[string]string{
		"show ''": "tun01\ntun02\n", "tunnel del ''": "tun01\ntun02\n", "tunnel ''": "change\tChange a tunnel while packets pass\n", "tunnel add x ''": "remote\n",
	} {
		if out := c.types(t, "goipip __complete "+line+" 2>/dev/null"); !strings.Contains(out, want) {
			t.Errorf("completion of goipip %s: %q, want %q", line, out, want)
		}
	}
	c.types(t, "goipip tunnel del tun01; goipip tunnel del tun02")
	c.isEmpty(t)
}

// terminal is a pseudo-terminal (pty(7)) with a process on it.
type terminal struct {
	*netlab.Process
	master *os.File
	mu     sync.Mutex
	text   bytes.Buffer
}

// onTerminal starts goipip on a terminal of 80 columns and 24 lines.
func (c computer) onTerminal(t *testing.T, env []string, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	term := &terminal{master: master}
	term.resize(t, 80, 24)
	cmd := exec.Command(labtest.BuildGoipip(t), args...)
	cmd.Env = append(append(os.Environ(), "TERM=xterm", "NO_COLOR=", "GORACE=atexit_sleep_ms=0"), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if term.Process, err = c.Start(cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.text.Write(buf[:n])
			term.mu.Unlock()
		}
	}()
	return term
}

func (term *terminal) resize(t *testing.T, columns, lines uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: lines}); err != nil {
		t.Fatal(err)
	}
}

func (term *terminal) String() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.String()
}

// Colours are for terminals, and for those who want them (no-color.org).
func TestShow_Colours(t *testing.T) {
	c := newComputer(t)
	c.types(t, fmt.Sprintf(add, "tun01", 1))
	for _, s := range []struct {
		env    []string
		colour bool
	}{{nil, true}, {[]string{"NO_COLOR=1"}, false}, {[]string{"TERM=dumb"}, false}} {
		term := c.onTerminal(t, s.env, "show")
		if err := term.Wait(labtest.Context(t)); err != nil {
			t.Error(err)
		}
		labtest.WaitFor(t, "output", func() bool { return strings.Contains(term.String(), "version") })
		if got := strings.Contains(term.String(), "\x1b["); got != s.colour {
			t.Errorf("with %q: colours %v: %q", s.env, got, term)
		}
	}
	c.types(t, "goipip tunnel del tun01")
	c.isEmpty(t)
}

// --watch has the screen to itself, follows its size, and leaves it as it was, however it ends.
func TestShow_Watch(t *testing.T) {
	c := newComputer(t)
	const enter, leave, home = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H"
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		c.types(t, fmt.Sprintf(add, "tun01", 1))
		term := c.onTerminal(t, nil, "show", "--watch", "tun01")
		labtest.WaitFor(t, "two frames", func() bool { return strings.Count(term.String(), home) >= 2 })
		if text := term.String(); !strings.HasPrefix(text, enter+home) || !strings.Contains(text, "link down") {
			t.Errorf("the terminal gets %q", text)
		}
		frames := strings.Count(term.String(), home)
		term.resize(t, 40, 5)
		if err := term.Signal(syscall.SIGWINCH); err != nil { // which the kernel sends to the terminal's own processes only
			t.Fatal(err)
		}
		labtest.WaitFor(t, "a frame of the new size", func() bool { return strings.Count(term.String(), home) > frames })
		all := strings.Split(term.String(), home)
		if n := strings.Count(all[len(all)-1], "\r\n") + 1; n > 5 {
			t.Errorf("%d lines on a terminal of 5: %q", n, all[len(all)-1])
		}
		if err := term.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := term.Wait(labtest.Context(t)); err != nil {
			t.Errorf("after %v: %v", sig, err)
		}
		labtest.WaitFor(t, "the screen as it was", func() bool { return strings.HasSuffix(term.String(), leave) })
		c.types(t, "goipip tunnel del tun01")
	}
	// A tunnel that ends ends the watch of it.
	c.types(t, fmt.Sprintf(add, "tun01", 1)+"; "+fmt.Sprintf(add, "tun02", 2))
	term := c.onTerminal(t, nil, "show", "--watch", "tun01")
	labtest.WaitFor(t, "a frame", func() bool { return strings.Contains(term.String(), home) })
	c.types(t, "goipip tunnel del tun01")
	if err := term.Wait(labtest.Context(t)); err == nil {
		t.Error("the watch ends without an error")
	}
	labtest.WaitFor(t, "the reason, after the screen is as it was", func() bool {
		_, after, ok := strings.Cut(term.String(), leave)
		return ok && strings.Contains(after, `no tunnel "tun01": there are tun02`)
	})
	c.types(t, "goipip tunnel del tun02")
	c.isEmpty(t)
}
