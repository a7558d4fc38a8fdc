package systemd_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// read returns a file of this directory.
func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// table is a tunnel of a configuration, by the number at the end of its addresses.
func table(name string, n int) string {
	return fmt.Sprintf("[tunnel.%s]\nlocal = \"192.168.6.1\"\nremote = \"192.168.6.%d\"\naddress = \"172.16.1.%[2]d\"\npeer = \"172.16.2.%[2]d\"\n", name, n)
}

// newNetwork returns a host on which systemd is to run, and one with the other ends of three
// tunnels, from 192.168.6.2 on.
func newNetwork(t *testing.T) (here, there *netlab.Host) {
	t.Helper()
	labtest.Need(t, "root", "tun", "systemd")
	lab := labtest.New(t)
	var errs []error
	for name, h := range map[string]**netlab.Host{"here": &here, "there": &there} {
		var err error
		*h, err = lab.Host(name)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	errs = []error{lab.Veth(here, "eth0", there, "eth0"), here.AddAddr("eth0", "192.168.6.1/24")}
	config := ""
	for n := 2; n <= 4; n++ {
		errs = append(errs, there.AddAddr("eth0", fmt.Sprintf("192.168.6.%d/24", n)))
		config += fmt.Sprintf("[tunnel.tun%d]\nlocal = \"192.168.6.%[1]d\"\nremote = \"192.168.6.1\"\naddress = \"172.16.2.%[1]d\"\npeer = \"172.16.1.%[1]d\"\n", n)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/there.toml"
	write(t, file, config, 0o600)
	if _, err := there.Start(exec.Command(labtest.Build(t, "goipip/cmd/goipip"), "run", "--config", file)); err != nil {
		t.Fatal(err)
	}
	return here, there
}

// carries checks that packets pass by tunnel n, in both directions.
func carries(t *testing.T, here *netlab.Host, n int) {
	t.Helper()
	labtest.WaitFor(t, fmt.Sprintf("tunnel %d to carry packets", n), func() bool {
		r, err := here.Ping(labtest.Context(t), netip.AddrFrom4([4]byte{172, 16, 2, byte(n)}), netlab.PingOptions{})
		return err == nil && r.Received > 0
	})
}

// The unit starts goipip with two capabilities and no more, and systemd knows how it fares.
func TestService(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bpf")
	here, _ := newNetwork(t)
	m := startMachine(t, here, map[string]string{
		"src/deploy/systemd/goipip.service":  read(t, "goipip.service"),
		"src/deploy/systemd/goipip@.service": read(t, "goipip@.service"),
		"src/deploy/systemd/sysusers.conf":   read(t, "sysusers.conf"),
		"src/deploy/systemd/fast-path.conf":  read(t, "fast-path.conf"),
		"etc/goipip/goipip.toml":             table("tun02", 2),
		"etc/goipip/instances/branch.toml":   table("tun03", 3) + "fast-path = \"on\"\n",

		"etc/systemd/system/goipip@branch.service.d/fast-path.conf": read(t, "fast-path.conf"),
	})
	m.does("mv /usr/bin/goipip /src")
	install := documented(t, "systemd.md", 2) // the units, and the drop-in
	m.does(install[0])
	if got, want := m.property("goipip.service", "StatusText"), "1 tunnel up"; got != want {
		t.Errorf("status %q, want %q", got, want)
	}
	carries(t, here, 2)

	pid := m.property("goipip.service", "MainPID")
	status := "\n" + m.does("cat /proc/"+pid+"/status")
	const netAdminAndRaw = "0000000000003000"
	uid := m.does("id -u goipip")
	for _, want := range []string{
		"Uid:\t" + strings.Repeat(uid+"\t", 4), "CapEff:\t" + netAdminAndRaw, "CapBnd:\t" + netAdminAndRaw, "CapAmb:\t" + netAdminAndRaw,
		"NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(status, "\n"+strings.TrimSpace(want)) {
			t.Errorf("not %q, but%s", want, status)
		}
	}

	// Root's commands reach the daemon, which is not root's.
	m.does("goipip tunnel add tun04 mode ipip local 192.168.6.1 remote 192.168.6.4 && ip link set tun04 up && " +
		"ip address add 172.16.1.4 peer 172.16.2.4 dev tun04")
	carries(t, here, 4)
	m.becomes("goipip.service", "StatusText", "2 tunnels up")

	// A reload is one, and its trouble shows.
	write(t, m.path("/etc/goipip/goipip.toml"), table("tun02", 2)+"[tunnel.lost]\nlocal = \"192.168.6.1\"\nremote = \"203.0.113.1\"\n"+
		"[tunnel.broken]\nlocal = \"192.168.6.1\"\nremote = \"192.168.6.9\"\ndev = \"nosuch0\"\n", 0o644)
	m.does("systemctl reload goipip.service")
	m.becomes("goipip.service", "StatusText", "3 tunnels up, 1 without a usable route: lost, 1 not running: broken")
	carries(t, here, 2)
	if got := m.property("goipip.service", "MainPID"); got != pid {
		t.Errorf("the reload is a restart: process %s, and then %s", pid, got)
	}

	// The journal has the fields.
	m.does(documented(t, "logs.md", 1)[0])
	entry := m.does("journalctl --sync && journalctl --no-pager --output=verbose TUNNEL=lost PRIORITY=4")
	for _, want := range []string{"_SYSTEMD_UNIT=goipip.service", "SYSLOG_IDENTIFIER=goipip", "GOIPIP_REMOTE=203.0.113.1",
		"MESSAGE=no route to the remote address"} {
		if !strings.Contains(entry, want) {
			t.Errorf("no %s in the journal's entry:\n%s", want, entry)
		}
	}

	// An instance runs beside, with the fast path, and all show.
	m.does("systemctl start goipip@branch.service")
	carries(t, here, 3)
	labtest.WaitFor(t, "the fast path of tun03", func() bool {
		return strings.Contains(strings.ReplaceAll(m.does("goipip show tun03 --json"), " ", ""), `"used":true`)
	})
	table := m.does("goipip show")
	for _, name := range []string{"tun02", "tun03", "tun04", "lost"} {
		if !strings.Contains(table, name) {
			t.Errorf("no %s in\n%s", name, table)
		}
	}

	// After a stop nothing is left, and the other goes on.
	m.does("systemctl stop goipip.service")
	if got := m.property("goipip.service", "Result"); got != "success" {
		t.Errorf("a stop is a %s", got)
	}
	if links := m.does("ip -brief link"); strings.Contains(links, "tun02") || !strings.Contains(links, "tun03") {
		t.Errorf("links after the stop of the one and not the other:\n%s", links)
	}
	m.does("systemctl stop goipip@branch.service")
	if left := m.does("ls -A /run/goipip"); left != "" {
		t.Errorf("/run/goipip has %s", left)
	}

	// The directory is the user's now, and root's daemon works in it all the same, and is
	// respected.
	m.does("goipip tunnel add tun04 mode ipip local 192.168.6.1 remote 192.168.6.4")
	if out, err := m.tries("systemctl start goipip.service"); err == nil {
		t.Errorf("two daemons in one network namespace: %s", out)
	}
	m.does("journalctl --sync")
	if why := m.does("journalctl --no-pager --unit goipip.service PRIORITY=3"); !strings.Contains(why, "another goipip daemon runs in this network namespace") {
		t.Errorf("goipip.service, beside root's daemon, says\n%s", why)
	}
	m.does("goipip tunnel del tun04; systemctl reset-failed goipip.service")
	m.does(install[1])
	const andBPF = "0000008000003000"
	if caps := m.does("grep CapEff /proc/" + m.property("goipip.service", "MainPID") + "/status"); caps != "CapEff:\t"+andBPF {
		t.Errorf("with the fast path %s, want %s", caps, andBPF)
	}
}

// documented returns the blocks of commands in a page of docs.
func documented(t *testing.T, page string, want int) (blocks []string) {
	t.Helper()
	within := false
	for line := range strings.Lines(read(t, "../../docs/"+page)) {
		command, ok := strings.CutPrefix(line, "    ")
		if ok && !within {
			blocks = append(blocks, "set -e; cd /src\n")
		}
		if within = ok; ok {
			blocks[len(blocks)-1] += command
		}
	}
	if len(blocks) != want {
		t.Fatalf("%d blocks of commands in docs/%s, want %d: %q", len(blocks), page, want, blocks)
	}
	return blocks
}

// What ends goipip without being asked to is a failure, after which systemd starts it again; an
// operator's ip link delete is none.
func TestService_Restart(t *testing.T) {
	t.Parallel()
	here, _ := newNetwork(t)
	const quick = "[Service]\nRestartSec=0\n"
	m := startMachine(t, here, map[string]string{
		"etc/systemd/system/goipip.service":              read(t, "goipip.service"),
		"etc/systemd/system/goipip.service.d/quick.conf": quick + "WatchdogSec=2\n",
		"etc/systemd/system/one.service":                 oneTunnel(t),
		"etc/systemd/system/one.service.d/quick.conf":    quick,
		"usr/lib/sysusers.d/goipip.conf":                 read(t, "sysusers.conf"),
		"etc/goipip/goipip.toml":                         table("tun02", 2),
	})
	m.does("systemd-sysusers goipip.conf")
	m.does("systemctl start goipip.service")
	carries(t, here, 2)
	for restarts, sig := range []string{"KILL", "STOP"} { // the second one only the watchdog sees
		pid := m.property("goipip.service", "MainPID")
		m.does("kill -" + sig + " " + pid)
		m.becomes("goipip.service", "NRestarts", fmt.Sprint(restarts+1))
		m.becomes("goipip.service", "ActiveState", "active")
		carries(t, here, 2)
	}
	m.does("ip link delete tun02")
	m.becomes("goipip.service", "StatusText", "0 tunnels up, 1 not running: tun02")
	m.does("systemctl reload goipip.service")
	carries(t, here, 2)

	m.does("systemctl start one.service")
	carries(t, here, 3)
	m.does("ip link delete tun03")
	m.becomes("one.service", "ActiveState", "inactive")
	if result, restarts := m.property("one.service", "Result"), m.property("one.service", "NRestarts"); result != "success" || restarts != "0" {
		t.Errorf("after ip link delete: result %s, %s restarts, want success and none", result, restarts)
	}
	m.does("systemctl stop goipip.service")
}

// oneTunnel is a unit like goipip.service with one tunnel by options.
func oneTunnel(t *testing.T) string {
	t.Helper()
	unit := read(t, "goipip.service")
	const start = "ExecStart=/usr/bin/goipip run --config /etc/goipip\n"
	if !strings.Contains(unit, start) {
		t.Fatalf("no line %q in the unit", start)
	}
	return strings.Replace(unit, start, "ExecStart=/usr/bin/goipip -name tun03 -local 192.168.6.1 -remote 192.168.6.3 "+
		"-address 172.16.1.3 -peer 172.16.2.3\n", 1)
}
