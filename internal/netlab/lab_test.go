package netlab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// forms are the command lines that make a tunnel. Each returns the function that awaits its end, when somebody has
// deleted the link.
var forms = map[string]func(t *testing.T, e end) (ended func()){
	"flags":           addByFlags,
	"fast path":       addWithFastPath,
	"ip-tunnel words": addByWords,
	"ip of deploy":    addByShim,
}

// addByFlags types `goipip -name NAME -local L -remote R`, in a shell's background.
func addByFlags(t *testing.T, e end) func() {
	t.Helper()
	return addBackground(t, e)
}

// addWithFastPath does so with `--fast-path on`.
func addWithFastPath(t *testing.T, e end) func() {
	t.Helper()
	labtest.Need(t, "bpf")
	return addBackground(t, e, "--fast-path", "on")
}

func addBackground(t *testing.T, e end, options ...string) func() {
	t.Helper()
	g := e.start(t, options...)
	return func() {
		t.Helper()
		if err := g.Wait(labtest.Context(t)); err != nil {
			t.Error(err)
		}
		g.hasNoComplaint(t)
	}
}

// addByWords types `goipip tunnel add NAME mode ipip remote R local L`, which returns when the link exists.
func addByWords(t *testing.T, e end) func() {
	t.Helper()
	return addBy(t, e, goipipCommand(t, "tunnel", "add", e.dev, "mode", "ipip", "remote", e.remote, "local", e.local))
}

// addByShim types `ip tunnel add NAME mode ipip remote R local L`, where ip is that of deploy/.
func addByShim(t *testing.T, e end) func() {
	t.Helper()
	cmd := goipipCommand(t, "tunnel", "add", e.dev, "mode", "ipip", "remote", e.remote, "local", e.local)
	cmd.Env = append(os.Environ(), "GOIPIP="+cmd.Path)
	cmd.Path = "../../deploy/ip"
	cmd.Args[0] = cmd.Path
	return addBy(t, e, cmd)
}

func addBy(t *testing.T, e end, cmd *exec.Cmd) func() {
	t.Helper()
	t.Cleanup(func() { // of a test that failed
		if hasLink(e.host, e.dev) {
			e.host.DeleteLink(e.dev)
		}
	})
	add := start(t, e.host, cmd)
	if err := add.Wait(labtest.Context(t)); err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, &add.out)
	}
	add.hasNoComplaint(t)
	if !hasLink(e.host, e.dev) || isUp(e.host, e.dev) {
		t.Errorf("when %v returns, %s is missing, or up, which ip tunnel leaves to the user", cmd.Args, e.dev)
	}
	if pids := goipips(t, e.host); len(pids) != 1 {
		t.Errorf("processes %v of goipip on %s after %v, want one", pids, e.host.Name, cmd.Args)
	}
	return func() {
		t.Helper()
		labtest.WaitFor(t, "the end of the background process", func() bool { return len(goipips(t, e.host)) == 0 })
	}
}

// goipips returns the ids of the processes of goipip on host.
func goipips(t *testing.T, host *netlab.Host) []int {
	t.Helper()
	var ns string
	if err := host.Do(func() error { ns = namespace(t); return nil }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Processes end while we look.
		exe, exeErr := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		in, nsErr := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if errors.Join(exeErr, nsErr) == nil && exe == labtest.BuildGoipip(t) && in == ns {
			pids = append(pids, pid)
		}
	}
	return pids
}

// tcpdump types `tcpdump -n -i DEV`. Its -l is what it does by itself on a terminal.
func tcpdump(t *testing.T, host *netlab.Host, dev string) *background {
	t.Helper()
	d := start(t, host, exec.Command("tcpdump", "-l", "-n", "-i", dev))
	d.out.waitFor(t, "listening on "+dev)
	return d
}

// pings types `ping -c 3 ADDRESS` and looks at the output.
func pings(t *testing.T, host *netlab.Host, to string) {
	t.Helper()
	mentions(t, "ping on "+host.Name, run(t, host, "ping -c 3 "+to), "3 received", " 0% packet loss", "ttl=64")
}

// deletes types `ip link delete DEV`, after which nothing of the tunnel is left.
func deletes(t *testing.T, e end, before []string, ended func()) {
	t.Helper()
	run(t, e.host, "ip link delete "+e.dev)
	ended()
	if after := links(t, e.host); !slices.Equal(after, before) {
		t.Errorf("devices of %s are %v, and were %v before the tunnel", e.host.Name, after, before)
	}
	if out, err := e.host.Output("ip", "link", "show", e.dev); err == nil {
		t.Errorf("%s is still there: %s", e.dev, out)
	}
	labtest.WaitFor(t, "the raw sockets to be gone from "+e.host.Name, func() bool { return rawSockets(t, e.host) == 0 })
}

// rawSockets counts a host's raw sockets (proc(5), /proc/net/raw).
func rawSockets(t *testing.T, host *netlab.Host) int {
	t.Helper()
	var table []byte
	if err := host.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/raw"); return err }); err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), "\n") - 1 // without the heading
}

func TestLab1(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "ip", "ping", "tcpdump")
	for name, add := range forms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLab1(t, add)
		})
	}
}

func testLab1(t *testing.T, add func(*testing.T, end) func()) {
	host01, host02, _, err := labtest.New(t).Lab1()
	if err != nil {
		t.Fatal(err)
	}
	before := links(t, host01)

	tun01 := end{host: host01, dev: "tun01", remote: "192.168.1.129", local: "10.90.6.238"}
	ended := add(t, tun01)
	run(t, host01, "ip link set tun01 up")
	run(t, host01, "ip addr add 172.66.1.101 peer 172.66.2.101 dev tun01")
	ended02 := add(t, end{host: host02, dev: "tun02", remote: "10.90.6.238", local: "192.168.1.129"})
	run(t, host02, "ip link set tun02 up")
	run(t, host02, "ip addr add 172.66.2.101 peer 172.66.1.101 dev tun02")

	onTunnel, onUnderlay := tcpdump(t, host01, "tun01"), tcpdump(t, host01, "eth0")
	pings(t, host01, "172.66.2.101")
	onTunnel.out.waitFor(t, "link-type RAW (Raw IP)")
	onTunnel.out.waitFor(t, "IP 172.66.1.101 > 172.66.2.101: ICMP echo request")
	onTunnel.out.waitFor(t, "IP 172.66.2.101 > 172.66.1.101: ICMP echo reply")
	onUnderlay.out.waitFor(t, "IP 10.90.6.238 > 192.168.1.129: IP 172.66.1.101 > 172.66.2.101: ICMP echo request")
	onUnderlay.out.waitFor(t, "IP 192.168.1.129 > 10.90.6.238: IP 172.66.2.101 > 172.66.1.101: ICMP echo reply")

	deletes(t, tun01, before, ended)
	run(t, host02, "ip link delete tun02")
	ended02()
}

func TestLab2(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "ip", "ping", "tcpdump")
	for name, add := range forms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLab2(t, add)
		})
	}
}

func testLab2(t *testing.T, add func(*testing.T, end) func()) {
	l := newTunnelLab(t)
	before01, before02 := links(t, l.ns01), links(t, l.ns02)
	// The addresses are typed below.
	l.end01.inner, l.end02.inner = "", ""

	ended01 := add(t, l.end01)
	run(t, l.ns01, "ip link set tun01 up")
	run(t, l.ns01, "ip addr add 172.56.1.101 peer 172.56.2.101 dev tun01")
	ended02 := add(t, l.end02)
	run(t, l.ns02, "ip link set dev tun02 up")
	run(t, l.ns02, "ip addr add 172.56.2.101 peer 172.56.1.101 dev tun02")

	// O1. The local outer address is missing, because a TUN device cannot be given it.
	mentions(t, "ip addr", run(t, l.ns01, "ip addr"),
		"<POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1480",
		"link/ipip ",
		" peer 192.168.8.101",
		"inet 172.56.1.101 peer 172.56.2.101/32")

	onRouter := tcpdump(t, l.router, "veth01_p")
	pings(t, l.ns01, "172.56.2.101")
	pings(t, l.ns02, "172.56.1.101")
	onRouter.out.waitFor(t, "IP 192.168.6.101 > 192.168.8.101: IP 172.56.1.101 > 172.56.2.101: ICMP echo request")
	onRouter.out.waitFor(t, "IP 192.168.8.101 > 192.168.6.101: IP 172.56.2.101 > 172.56.1.101: ICMP echo reply")
	onRouter.out.waitFor(t, "IP 192.168.8.101 > 192.168.6.101: IP 172.56.2.101 > 172.56.1.101: ICMP echo request")

	deletes(t, l.end01, before01, ended01)
	deletes(t, l.end02, before02, ended02)
}
