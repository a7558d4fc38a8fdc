//go:build linux

package deploy_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// machine is a host with a file system of its own, which begins as this machine's.
type machine struct {
	*netlab.Host
	keeper *netlab.Process // has the mount namespace
	root   string          // in it
}

// newMachine gives h a file system, in which packages is /mnt. It ends with its lab.
func newMachine(t *testing.T, h *netlab.Host, packages string) machine {
	t.Helper()
	dir := t.TempDir()
	const mount = `
		mount -t tmpfs none "$1"
		mkdir "$1/upper" "$1/work" "$1/root"
		mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none "$1/root"
		for d in proc dev sys; do mount --rbind "/$d" "$1/root/$d"; done
		mount -t tmpfs -o mode=755 none "$1/root/run"
		mount --bind "$2" "$1/root/mnt"
		touch "$1/root/run/ready"
		exec sleep infinity`
	keeper, err := h.Start(exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", mount, "sh", dir, packages))
	if err != nil {
		t.Fatal(err)
	}
	m := machine{h, keeper, filepath.Join(dir, "root")}
	labtest.WaitFor(t, "a file system for "+h.Name, func() bool { _, err := m.tries("test -e /run/ready"); return err == nil })
	return m
}

// command is a command line of a shell there.
func (m machine) command(line string) []string {
	return []string{"nsenter", "--target", fmt.Sprint(m.keeper.Pid()), "--mount", "chroot", m.root, "sh", "-c", line}
}

func (m machine) tries(line string) (string, error) {
	c := m.command(line)
	return m.Output(c[0], c[1:]...)
}

// types types a command line, which must succeed, and returns what it prints.
func (m machine) types(t *testing.T, line string) string {
	t.Helper()
	out, err := m.tries(line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return out
}

// starts starts a command in the background.
func (m machine) starts(t *testing.T, line string) *netlab.Process {
	t.Helper()
	c := m.command("exec " + line)
	p, err := m.Start(exec.Command(c[0], c[1:]...))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// systemctlSaw compares what the machine's systemctl was told since the last time.
func (m machine) systemctlSaw(t *testing.T, want ...string) {
	t.Helper()
	if got := m.types(t, "cat /run/systemctl; rm /run/systemctl"); got != strings.Join(want, "\n")+"\n" {
		t.Errorf("systemctl is told\n%swant\n%s", got, strings.Join(want, "\n"))
	}
}

// hasNothing looks for files of goipip that were not there from the beginning.
func (m machine) hasNothing(t *testing.T) {
	t.Helper()
	out, err := m.Output("nsenter", "--target", fmt.Sprint(m.keeper.Pid()), "--mount",
		"find", filepath.Join(m.root, "../upper"), "-name", "*goipip*", "-a", "!", "-type", "c") // which stands for what is removed
	if err != nil || out != "" {
		t.Errorf("after the purge there is, with %v,\n%s", err, out)
	}
}

const (
	config = "[tunnel.tun01]\nlocal = '192.168.6.101'\nremote = '192.168.8.101'\naddress = '10.1.0.1'\npeer = '10.1.0.2'\n"
	// systemctl is one that writes down what it is told, and says that goipip runs.
	systemctl = `mkdir -p /run/systemd/system && printf '#!/bin/sh\necho "$@" >>/run/systemctl\n' >/usr/local/bin/systemctl && chmod 755 /usr/local/bin/systemctl`
)

// testDpkg installs a package, uses it, upgrades it under traffic, removes and purges it.
func testDpkg(t *testing.T, source tree) {
	labtest.Need(t, "root", "tun", "unshare")
	source.packages(t, "0.2.0", "deb")
	ns01, ns02, _, err := labtest.New(t).Lab2()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(string(source), "dist/stage", runtime.GOARCH, "goipip")
	if _, err := ns02.Start(exec.Command(program, "-local", "192.168.8.101", "-remote", "192.168.6.101", "-address", "10.1.0.2", "-peer", "10.1.0.1")); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, ns01, filepath.Join(string(source), "dist"))
	peer := netip.MustParseAddr("10.1.0.2")
	ping := func(o netlab.PingOptions) netlab.PingResult {
		r, _ := m.Ping(labtest.Context(t), peer, o) // that fails while there is no link
		return r
	}
	answers := func() bool { return ping(netlab.PingOptions{Timeout: 20 * time.Millisecond}).Received > 0 }

	// A new installation starts nothing, and has no tunnel; without systemd too.
	m.types(t, "dpkg -i /mnt/"+deb("0.1.0"))
	if out := m.types(t, "goipip version"); !strings.HasPrefix(out, "goipip  0.1.0\n") {
		t.Errorf("goipip version: %s", out)
	}
	if out := m.types(t, "ls -A /etc/goipip; ls -A /run; dpkg -V goipip"); out != "goipip.toml.example\ninstances\nready\n" {
		t.Errorf("after the installation: %s", out)
	}
	m.types(t, "! command -v systemd-sysusers || id goipip")
	if out, err := m.tries("goipip check --config /etc/goipip"); err == nil {
		t.Errorf("the example counts: %s", out)
	}
	m.types(t, "dpkg -P goipip")
	m.hasNothing(t)

	// The commands of docs/install.md. Who edits a file of examples takes the comment signs away.
	m.types(t, systemctl)
	for _, line := range commands(t, "Debian, Ubuntu") {
		line = strings.ReplaceAll(line, "goipip_0.1.0_amd64.deb", "/mnt/"+deb("0.1.0"))
		m.types(t, `editor() { sed -i 's/^#\([^ \t]\)/\1/; s/^#$//' "$1"; }; `+line)
	}
	m.systemctlSaw(t, "daemon-reload", "enable --now goipip")

	m.types(t, "printf '%s' \""+config+"\" >/etc/goipip/goipip.toml; echo '# mine' >>/etc/goipip/goipip.toml.example")
	first := m.starts(t, "goipip run --config /etc/goipip")
	labtest.WaitFor(t, "an answer through the tunnel", answers)

	// An upgrade under traffic restarts nothing, says so, and loses nothing.
	stop := make(chan struct{})
	lost := make(chan netlab.PingResult)
	go func() {
		var sum netlab.PingResult
		for {
			select {
			case <-stop:
				lost <- sum
				return
			default:
				r := ping(netlab.PingOptions{Count: 10, Interval: 2 * time.Millisecond})
				sum.Sent, sum.Received = sum.Sent+r.Sent, sum.Received+r.Received
			}
		}
	}()
	out := m.types(t, "dpkg -i /mnt/"+deb("0.2.0"))
	close(stop)
	if r := <-lost; r.Sent == 0 || r.Received != r.Sent {
		t.Errorf("while dpkg worked, %d of %d pings were answered", r.Received, r.Sent)
	}
	if !strings.Contains(out, "systemctl try-restart goipip.service") {
		t.Errorf("dpkg does not say how to restart: %s", out)
	}
	m.systemctlSaw(t, "daemon-reload", "--quiet is-active goipip.service goipip@*.service")
	if out := m.types(t, "tail -n 1 /etc/goipip/goipip.toml.example; goipip version"); !strings.HasPrefix(out, "# mine\ngoipip  0.2.0\n") {
		t.Errorf("after the upgrade: %s", out)
	}
	var processes []struct {
		Process struct {
			PID     int
			Version string
		}
	}
	running := func() string {
		t.Helper()
		if err := json.Unmarshal([]byte(m.types(t, "goipip show --json")), &processes); err != nil || len(processes) != 1 {
			t.Fatalf("goipip show: %v, %v", processes, err)
		}
		version, _, _ := strings.Cut(processes[0].Process.Version, " ")
		return version
	}
	if v := running(); v != "0.1.0" || processes[0].Process.PID != first.Pid() {
		t.Errorf("after the upgrade %s runs, process %d, want still %d", v, processes[0].Process.PID, first.Pid())
	}

	// The restart that a person types: tunnels are back within a second.
	start := time.Now()
	if err := first.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(labtest.Context(t)); err != nil {
		t.Fatal(err)
	}
	second := m.starts(t, "goipip run --config /etc/goipip")
	labtest.WaitFor(t, "an answer after the restart", answers)
	away := time.Since(start)
	t.Logf("the restart took %v", away)
	if away > time.Second {
		t.Errorf("the restart took %v, want at most 1 s", away)
	}
	if v := running(); v != "0.2.0" {
		t.Errorf("after the restart %s runs", v)
	}

	m.types(t, "cp /etc/goipip/goipip.toml /etc/goipip/instances/site.toml")

	// Removed, it leaves what people wrote; purged, nothing.
	m.types(t, "dpkg -r goipip")
	m.systemctlSaw(t, "stop goipip.service goipip@*.service", "daemon-reload")
	if err := second.Stop(); err != nil {
		t.Error(err)
	}
	if out := m.types(t, "ls /etc/goipip; ! command -v goipip"); out != "goipip.toml\ngoipip.toml.example\ninstances\n" {
		t.Errorf("after the removal: %s", out)
	}
	m.types(t, "mkdir -p /etc/systemd/system/multi-user.target.wants && ln -s /usr/lib/systemd/system/goipip.service /etc/systemd/system/multi-user.target.wants/ && dpkg -P goipip")
	m.hasNothing(t)
}
