//go:build linux

package main_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// serviceManager is the other end of sd_notify(3).
type serviceManager struct {
	path     string
	messages chan string
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	m := &serviceManager{filepath.Join(t.TempDir(), "notify"), make(chan string, 1000)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			m.messages <- string(b[:n])
		}
	}()
	return m
}

// next returns the next message that is no sign of life.
func (m *serviceManager) next(t *testing.T) string {
	t.Helper()
	for {
		if s := labtest.Within(t, "a message to the service manager", m.messages); s != "WATCHDOG=1" {
			return s
		}
	}
}

func (m *serviceManager) hears(t *testing.T, want string) {
	t.Helper()
	if got := m.next(t); got != want {
		t.Errorf("the service manager hears %q, want %q", got, want)
	}
}

// hearsLife waits for a sign of life.
func (m *serviceManager) hearsLife(t *testing.T) {
	t.Helper()
	for labtest.Within(t, "a sign of life", m.messages) != "WATCHDOG=1" {
	}
}

// start starts goipip as a service manager does, with a watchdog of 200 ms.
func (m *serviceManager) start(t *testing.T, c computer, args ...string) *netlab.Process {
	t.Helper()
	cmd := exec.Command(labtest.BuildGoipip(t), args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=200000")
	p, err := c.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

// reloads has p read its configuration again, or do as if, and checks what the manager hears.
func (m *serviceManager) reloads(t *testing.T, p *netlab.Process, status string) {
	t.Helper()
	before := monotonic(t)
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	usec, ok := strings.CutPrefix(m.next(t), "RELOADING=1\nMONOTONIC_USEC=")
	if at, err := strconv.ParseInt(usec, 10, 64); !ok || err != nil || at < before || at > monotonic(t) {
		t.Errorf("the reload at %q, want a time from %d to %d", usec, before, monotonic(t))
	}
	m.hears(t, "READY=1\nSTATUS="+status)
}

// goipip run tells the service manager when its tunnels are up, how they are, that it lives,
// and when it reloads and ends.
func TestManager_Run(t *testing.T) {
	t.Parallel()
	c, m := newComputer(t), newServiceManager(t)
	file := filepath.Join(t.TempDir(), "goipip.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	table := func(name string, n int, more string) string {
		return fmt.Sprintf("[tunnel.%s]\nlocal = \"127.0.0.1\"\nremote = \"127.0.0.%d\"\n%s", name, n, more)
	}
	write(table("tun01", 2, "") + table("tun02", 3, "dev = \"nosuch0\"\n"))
	p := m.start(t, c, "run", "--config", file)
	m.hears(t, "STATUS=starting the tunnels")
	m.hears(t, "READY=1\nSTATUS=1 tunnel up, 1 not running: tun02")
	for range 3 {
		m.hearsLife(t)
	}

	c.types(t, "ip route add unreachable 198.51.100.0/24")
	write(table("tun01", 2, "") + table("tun02", 3, "") + "[tunnel.tun03]\nlocal = \"127.0.0.1\"\nremote = \"198.51.100.1\"\n")
	m.reloads(t, p, "3 tunnels up, 1 without a usable route: tun03")
	c.types(t, "ip link delete tun03")
	m.hears(t, "STATUS=2 tunnels up, 1 not running: tun03")
	write("nonsense")
	m.reloads(t, p, "2 tunnels up, 1 not running: tun03")
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.hears(t, "STOPPING=1\nSTATUS=ending the tunnels")
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
}

// goipip -local … does so too. After ip link delete its status is that of success.
func TestManager_Foreground(t *testing.T) {
	t.Parallel()
	c, m := newComputer(t), newServiceManager(t)
	p := m.start(t, c, "-name", "tun01", "-local", "127.0.0.1", "-remote", "127.0.0.2")
	m.hears(t, "READY=1\nSTATUS=1 tunnel up")
	m.hearsLife(t)
	m.reloads(t, p, "1 tunnel up")
	c.types(t, "ip link delete tun01")
	labtest.WaitFor(t, "the end to be told", func() bool { return strings.HasPrefix(m.next(t), "STOPPING=1\n") })
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Errorf("after ip link delete: %v, want status 0", err)
	}
}

// A link that ends by an error of the kernel is a failure, also of goipip run if it was the last.
func TestManager_Failure(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "goipip.toml")
	if err := os.WriteFile(file, []byte("[tunnel.tun01]\nlocal = \"127.0.0.1\"\nremote = \"127.0.0.2\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"run --config " + file, "-local 127.0.0.1 -remote 127.0.0.2"} {
		c := newComputer(t)
		// The loops find their sockets broken: recvmmsg(2) takes at least one message.
		broken := netlab.RefusedCall{Number: unix.SYS_RECVMMSG, Arg: 2, Unless: bpf.JumpEqual, Value: 0, Errno: unix.EBADF}
		p, err := c.StartRefusing(exec.Command(labtest.BuildGoipip(t), strings.Fields(line)...), broken)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(labtest.Context(t)); err == nil || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("%s, with broken sockets: %v, want exit status 1", line, err)
		}
		c.isEmpty(t)
	}
}

// What systemd says to one process does not reach a daemon in the background.
func TestManager_NotInherited(t *testing.T) {
	t.Parallel()
	c, m := newComputer(t), newServiceManager(t)
	c.types(t, "NOTIFY_SOCKET="+m.path+" WATCHDOG_USEC=1000000 JOURNAL_STREAM=1:1 "+fmt.Sprintf(add, "tun01", 1))
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.daemon(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"} {
		if strings.Contains(string(env), name) {
			t.Errorf("the daemon has %s", name)
		}
	}
	c.types(t, "goipip tunnel del tun01")
	c.isEmpty(t)
	if len(m.messages) > 0 {
		t.Errorf("the service manager hears %q", <-m.messages)
	}
}
