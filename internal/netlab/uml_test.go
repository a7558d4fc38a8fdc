package netlab_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// newGuest boots a guest with cards tap0, tap1 and so on, on a host of its own.
func newGuest(t *testing.T, cards int) (*netlab.Guest, *netlab.Host) {
	t.Helper()
	labtest.Need(t, "uml")
	host := newHost(t, labtest.New(t), "h")
	var cfg netlab.GuestConfig
	for i := range cards {
		cfg.Cards = append(cfg.Cards, fmt.Sprintf("tap%d", i))
	}
	guest, err := host.StartGuest(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return guest, host
}

// runIn runs a script in the guest and returns what it printed.
func runIn(t *testing.T, guest *netlab.Guest, script string) string {
	t.Helper()
	out, err := guest.Run(script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGuestRun(t *testing.T) {
	guest, _ := newGuest(t, 0)
	for _, test := range []struct{ name, script, out, err string }{
		{"both outputs", "echo out; echo err >&2", "out\nerr\n", ""},
		{"status", "echo why; exit 3", "why\n", "status 3: why"},
		{"several lines", "a=1\nif true; then\n\techo $a\nfi", "1\n", ""},
		{"like an answer", "printf '4 1\\n5 1\\nready'", "4 1\n5 1\nready", ""},
		{"console", "echo '5 1' >/dev/console; echo '5 1' >/dev/kmsg", "", ""},
		{"nothing to read", "cat", "", ""},
		{"background", "sleep 1000 & echo started", "started\n", ""},
		{"read-only", "touch /tmp/x 2>/dev/null", "", "status 1"},
		{"temporary files", "mktemp >/dev/null", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := guest.Run(test.script)
			if out != test.out {
				t.Errorf("output is %q, want %q", out, test.out)
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error is %v, want %q", err, test.err)
			}
		})
	}
}

func TestGuestModules(t *testing.T) {
	guest, _ := newGuest(t, 0)
	if err := guest.LoadModules("ipip", "sch-netem"); err != nil {
		t.Fatal(err)
	}
	if err := guest.LoadModules("ipip"); err != nil {
		t.Errorf("load again: %v", err)
	}
	mentions(t, "/proc/modules", runIn(t, guest, "cat /proc/modules"), "ipip ", "tunnel4 ", "ip_tunnel ", "sch_netem ")
	if err := guest.LoadModules("no_such_module"); err == nil {
		t.Error("no error for a module that does not exist")
	}
}

// Two kernels that are not goipip understand each other: the module in a guest, and AttachIPIP.
func TestGuestIPIP(t *testing.T) {
	labtest.Need(t, "bpf", "socat", "ip", "ping")
	guest, host := newGuest(t, 1)
	if err := guest.LoadModules("ipip"); err != nil {
		t.Fatal(err)
	}
	runIn(t, guest, `set -e
		ip addr add 192.168.6.102/24 dev vec0
		ip tunnel add tun02 mode ipip remote 192.168.6.101 local 192.168.6.102
		ip link set tun02 up
		ip addr add 172.56.2.101 peer 172.56.1.101 dev tun02`)
	p := path{a: host, addrA: netip.MustParseAddr("172.56.1.101"), addrB: netip.MustParseAddr("172.56.2.101")}
	attachIPIP(t, p, "tap0", netip.MustParsePrefix("192.168.6.101/24"), netip.MustParsePrefix("192.168.6.102/24"))

	p.ping(t, netlab.PingOptions{})
	p.ping(t, netlab.PingOptions{Size: vethMTU - 2*packet.IPv4HdrLen - 8, DF: true})
	mentions(t, "ping", runIn(t, guest, "ping -c 2 -i 0.2 172.56.1.101"), " 0% packet loss")
	if _, err := guest.Echo(labtest.Context(t), host, netip.AddrPortFrom(p.addrA, 0), 16<<20); err != nil {
		t.Error(err)
	}
}

func TestGuestEchoErrors(t *testing.T) {
	labtest.Need(t, "socat")
	guest, host := newGuest(t, 0)
	_, err := guest.Echo(labtest.Context(t), host, netip.MustParseAddrPort("127.0.0.1:0"), 1)
	if err == nil || !strings.Contains(err.Error(), "Connection refused") {
		t.Errorf("error is %v, want that of the guest's socat", err)
	}
}

func TestGuestsSideBySide(t *testing.T) {
	labtest.Need(t, "uml")
	host := newHost(t, labtest.New(t), "h")
	var boots sync.WaitGroup
	for i := range 3 {
		boots.Go(func() {
			guest, err := host.StartGuest(netlab.GuestConfig{Cards: []string{fmt.Sprintf("tap%d", i)}})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := guest.Run("ip link show vec0"); err != nil {
				t.Error(err)
			}
			if err := guest.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	boots.Wait()
	if left := links(t, host); len(left) != 1 {
		t.Errorf("devices %q are left", left)
	}
}

func TestGuestPanics(t *testing.T) {
	guest, _ := newGuest(t, 0)
	_, err := guest.Run("echo c >/proc/sysrq-trigger")
	if err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("error is %v, want what the console says", err)
	}
}

func TestStartGuestErrors(t *testing.T) {
	labtest.Need(t, "uml")
	lab := labtest.New(t)
	host := newHost(t, lab, "h")
	_, err := host.StartGuest(netlab.GuestConfig{Cards: []string{"lo"}})
	if err == nil || !strings.Contains(err.Error(), "vec0") {
		t.Errorf("error is %v, want one for the name of the first card", err)
	}
	t.Setenv("PATH", "")
	if _, err := host.StartGuest(netlab.GuestConfig{}); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error is %v, want %v", err, exec.ErrNotFound)
	}
}

// orphanGuestEnv makes TestGuestKilled its own victim.
const orphanGuestEnv = "NETLAB_TEST_ORPHAN_GUEST"

// What a killed test leaves behind ends by itself, all of its many processes.
func TestGuestKilled(t *testing.T) {
	if os.Getenv(orphanGuestEnv) != "" {
		newGuest(t, 1)
		fmt.Println("booted")
		select {}
	}
	labtest.Need(t, "uml")
	dir := t.TempDir()
	cmd := exec.CommandContext(labtest.Context(t), os.Args[0], "-test.run=^TestGuestKilled$")
	cmd.Env = append(os.Environ(), orphanGuestEnv+"=1", "TMPDIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	before := mentioning(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // It says that the process was killed.
	if line != "booted\n" || before < 3 {
		t.Fatalf("it printed %q, and %d processes ran", line, before)
	}
	labtest.WaitFor(t, "the end of the guest", func() bool { return mentioning(t, dir) == 0 })
}

// mentioning returns how many processes have a text in their arguments.
func mentioning(t *testing.T, text string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		// Processes end while we look.
		if args, err := os.ReadFile(file); err == nil && strings.Contains(string(args), text) {
			n++
		}
	}
	return n
}
