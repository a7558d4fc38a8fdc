//go:build linux

package main_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/tunnel"
)

// site has a host whose names dnsmasq on another host knows, which is also the remote end of tunnels.
type site struct {
	computer
	far     *netlab.Host
	etc     string // in place of /etc, on the host
	hosts   string // the names that dnsmasq knows, as in /etc/hosts
	queries string // what dnsmasq was asked
	log     logFile
}

// logFile collects what a program says.
type logFile struct{ labtest.Output }

// count returns how many lines have all of some texts.
func (l *logFile) count(texts ...string) (n int) {
lines:
	for line := range strings.Lines(l.String()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		n++
	}
	return n
}

func newNamesSite(t *testing.T) *site {
	t.Helper()
	labtest.Need(t, "root", "tun", "ip", "dnsmasq", "ping")
	lab := labtest.New(t)
	near, err := lab.Host("near")
	if err != nil {
		t.Fatal(err)
	}
	far, err := lab.Host("far")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &site{computer: computer{near, ""}, far: far, etc: filepath.Join(dir, "etc"), hosts: filepath.Join(dir, "hosts"), queries: filepath.Join(dir, "queries")}
	if err := errors.Join(
		lab.Veth(near, "eth0", far, "eth0"),
		near.AddAddr("eth0", "192.0.2.1/24"),
		far.AddAddr("eth0", "192.0.2.53/24"),
		os.Mkdir(s.etc, 0o755),
	); err != nil {
		t.Fatal(err)
	}
	s.write(t, s.hosts, "")
	s.write(t, filepath.Join(s.etc, "hosts"), "127.0.0.1 localhost\n192.0.2.17 Here.Example.net here # by hand\n")
	s.write(t, filepath.Join(s.etc, "resolv.conf"), "nameserver 192.0.2.53\nsearch example.net\noptions timeout:1 attempts:1\n")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("goipip said:\n%s", s.log.String())
		}
	})
	return s
}

func (s *site) write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// serve starts dnsmasq, with the names in s.hosts, which it reads again at SIGHUP. Its answers hold for ttl seconds.
func (s *site) serve(t *testing.T, ttl int) *netlab.Process {
	t.Helper()
	p, err := s.far.Start(exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root",
		"--no-resolv", "--no-hosts", "--addn-hosts="+s.hosts, fmt.Sprintf("--local-ttl=%d", ttl), "--local=/example.net/", "--cname=alias.example.net,other.example.net",
		"--listen-address=192.0.2.53", "--bind-interfaces", "--log-queries", "--log-facility="+s.queries))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// asked returns how often dnsmasq was asked for a name.
func (s *site) asked(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile(s.queries)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "query[A] "+name+" from")
}

// runs starts goipip with s.etc for its /etc.
func (s *site) runs(t *testing.T, args ...string) *netlab.Process {
	t.Helper()
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$0" /etc && exec "$@"`, s.etc, labtest.BuildGoipip(t)}, args...)...)
	cmd.Stderr = &s.log
	p, err := s.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// status returns the status of a tunnel, or nil if there is none.
func (s *site) status(t *testing.T, name string) (found *control.TunnelStatus) {
	t.Helper()
	if err := s.Do(func() error {
		clients, err := control.DialAll("")
		for _, c := range clients {
			var st control.Status
			if c.Call(control.MethodStatus, control.NameParams{Name: name}, &st) == nil && len(st.Tunnels) > 0 {
				found = &st.Tunnels[0]
			}
			c.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// isAt waits until a tunnel's remote end is at an address, and returns its status.
func (s *site) isAt(t *testing.T, name, remote string) (status *control.TunnelStatus) {
	t.Helper()
	labtest.WaitFor(t, name+" to be at "+remote, func() bool {
		status = s.status(t, name)
		return status != nil && status.Index != 0 && status.Config.Remote == netip.MustParseAddr(remote)
	})
	return status
}

func (s *site) says(t *testing.T, n int, texts ...string) {
	t.Helper()
	labtest.WaitFor(t, fmt.Sprintf("%d lines with %q", n, texts), func() bool { return s.log.count(texts...) >= n })
	if got := s.log.count(texts...); got != n {
		t.Errorf("%d lines with %q, want %d", got, texts, n)
	}
}

// Tunnels follow names from before there is a server until they have another address; whatever a name does, it is said once, and
// the others do not notice.
func TestNames(t *testing.T) {
	t.Parallel()
	s := newNamesSite(t)
	file := filepath.Join(s.etc, "goipip.toml")
	const conf = `
[tunnel.plain]
local = "192.0.2.1"
remote = "192.0.2.16"

[tunnel.tun01]
local = "192.0.2.1"
remote = "gw.example.net"
resolve-interval = "1s"
addresses = ["10.0.1.1/24", "10.0.2.1/24"]

[tunnel.late]
local = "192.0.2.1"
remote = "late"
resolve-interval = "1s"

[tunnel.six]
local = "192.0.2.1"
remote = "six.example.net"
resolve-interval = "1s"

[tunnel.here]
local = "192.0.2.1"
remote = "here.example.net"
`
	s.write(t, file, conf)
	if out := s.types(t, "goipip check --config "+file); !strings.Contains(out, "5 tunnels, no errors") {
		t.Errorf("goipip check: %s", out)
	}

	// Without a server.
	p := s.runs(t, "run", "--strict", "--config", "/etc/goipip.toml")
	s.isAt(t, "plain", "192.0.2.16")
	s.isAt(t, "here", "192.0.2.17")
	for _, name := range []string{"tun01", "late", "six"} {
		s.says(t, 1, "this name has no address yet", "tunnel="+name, "connection refused")
	}
	if st := s.status(t, "late"); st == nil || st.Index != 0 || !strings.HasPrefix(st.Trouble, "waits for the address of late: ask 192.0.2.53: ") {
		t.Errorf("waiting: %+v", st)
	}
	if out := s.types(t, "goipip show late"); !strings.Contains(out, "not made yet") || !strings.Contains(out, "192.0.2.1 → late") {
		t.Errorf("goipip show of a tunnel that waits:\n%s", out)
	}

	// With one, one name has an address.
	s.write(t, s.hosts, "192.0.2.11 gw.example.net\n2001:db8::1 six.example.net\n")
	dns := s.serve(t, 1)
	first := s.isAt(t, "tun01", "192.0.2.11")
	s.says(t, 1, "this name has an address now", "tunnel=tun01", "name=gw.example.net")
	if out := s.types(t, "goipip show tun01"); !strings.Contains(out, "192.0.2.1 → 192.0.2.11 (gw.example.net)") {
		t.Errorf("goipip show:\n%s", out)
	}
	labtest.WaitFor(t, "the reason of late", func() bool { return strings.Contains(s.status(t, "late").Trouble, "NXDOMAIN") })
	labtest.WaitFor(t, "the reason of six", func() bool { return strings.Contains(s.status(t, "six").Trouble, "no IPv4 address") })

	// The far end is goipip at both addresses.
	for i, outer := range []string{"192.0.2.11", "192.0.2.12"} {
		if err := s.far.AddAddr("eth0", outer+"/24"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.far.Start(exec.Command(labtest.BuildGoipip(t), "-local", outer, "-remote", "192.0.2.1", "-address", fmt.Sprintf("10.0.%d.2/24", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	s.pings(t, "10.0.1.2")

	// It moves, and so does its tunnel, which keeps its link and what is on it.
	s.types(t, "ip route add 203.0.113.0/24 dev tun01")
	s.write(t, s.hosts, "192.0.2.12 gw.example.net\n192.0.2.13 late.example.net\n2001:db8::1 six.example.net\n")
	s.signal(t, dns, syscall.SIGHUP)
	if moved := s.isAt(t, "tun01", "192.0.2.12"); moved.Index != first.Index || moved.Since != first.Since {
		t.Errorf("the tunnel has another link: %+v, before %+v", moved, first)
	}
	s.pings(t, "10.0.2.2")
	if routes := s.types(t, "ip route show dev tun01"); !strings.Contains(routes, "203.0.113.0/24") {
		t.Errorf("the route is gone: %s", routes)
	}
	s.isAt(t, "late", "192.0.2.13")

	// Of several addresses it keeps the one that it has, and a reload changes nothing.
	s.write(t, s.hosts, "192.0.2.11 gw.example.net\n192.0.2.12 gw.example.net\n192.0.2.13 late.example.net\n2001:db8::1 six.example.net\n")
	s.signal(t, dns, syscall.SIGHUP)
	before := s.asked(t, "gw.example.net")
	s.signal(t, p, syscall.SIGHUP)
	labtest.WaitFor(t, "more lookups", func() bool { return s.asked(t, "gw.example.net") >= before+2 })
	s.says(t, 1, "the configuration was read again")
	s.says(t, 1, "tunnel has changed")

	s.says(t, 1, "this name has no address yet", "tunnel=six")

	// What waits ends with its table, or by request.
	s.write(t, file, "[tunnel.six]\nremote = \"six.example.net\"\n[tunnel.plain]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.16\"\n")
	s.signal(t, p, syscall.SIGHUP)
	s.says(t, 1, "the configuration was read again", "tunnels=2")
	s.types(t, "goipip tunnel del six; ip link delete plain")
	labtest.WaitFor(t, "the end of all", func() bool { return s.status(t, "plain") == nil && s.status(t, "six") == nil })
	s.signal(t, p, syscall.SIGTERM)
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
}

// While the server is silent, or gone, tunnels stay as they are, and a reload changes what it can.
func TestNames_NoServer(t *testing.T) {
	t.Parallel()
	s := newNamesSite(t)
	file := filepath.Join(s.etc, "goipip.toml")
	const conf = `
[tunnel.tun01]
remote = "gw.example.net"
resolve-interval = "1s"

[tunnel.tun02]
remote = "late"
resolve-interval = "1s"
`
	s.write(t, file, conf)
	s.write(t, s.hosts, "192.0.2.11 gw.example.net\n192.0.2.12 gw.example.net\n192.0.2.13 late.example.net\n192.0.2.14 other.example.net\n")
	dns := s.serve(t, 1)
	p := s.runs(t, "run", "--config", "/etc/goipip.toml")
	s.isAt(t, "tun02", "192.0.2.13")
	labtest.WaitFor(t, "tun01", func() bool { st := s.status(t, "tun01"); return st != nil && st.Index != 0 })
	before := s.status(t, "tun01")
	s.signal(t, dns, syscall.SIGSTOP)

	// By the address that is known, and by one that is not yet.
	s.write(t, file, strings.NewReplacer(`"gw.example.net"`, "\"gw.example.net\"\nttl = 7", `"late"`, `"alias.example.net"`).Replace(conf))
	s.signal(t, p, syscall.SIGHUP)
	s.says(t, 1, "tunnel has changed")
	if st := s.status(t, "tun01"); st.Config.TTL != 7 || st.Index != before.Index || st.Config.Remote != before.Config.Remote {
		t.Errorf("after a reload: %+v, before %+v", st, before)
	}
	s.says(t, 1, "this name has no address any more", "tunnel=tun01", "name=gw.example.net", "address="+before.Config.Remote.String(), "timeout")
	s.isAt(t, "tun02", "192.0.2.13")

	s.signal(t, dns, syscall.SIGKILL)
	wire, err := s.far.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "questions", func() bool {
		n := 0
		for _, p := range wire.Packets() {
			if !p.Outgoing && strings.Contains(string(p.Data), "\x02gw\x07example\x03net\x00") {
				n++
			}
		}
		return n >= 3
	})
	s.says(t, 1, "this name has no address any more", "tunnel=tun01")
	s.serve(t, 1)
	s.says(t, 1, "this name has an address now", "tunnel=tun01")
	s.isAt(t, "tun02", "192.0.2.14")
	if st := s.status(t, "tun01"); st.Config.Remote != before.Config.Remote || st.Index != before.Index {
		t.Errorf("after all: %+v, before %+v", st, before)
	}
}

// The local end follows its device, under this name, and a tunnel in the foreground waits too.
func TestNames_Device(t *testing.T) {
	t.Parallel()
	s := newNamesSite(t)
	p := s.runs(t, "-name", "tun01", "-local", "lan0", "-remote", "here")
	s.says(t, 1, "this name has no address yet", "tunnel=tun01", "name=lan0", "no such device")
	if st := s.status(t, "tun01"); st == nil || st.Index != 0 {
		t.Errorf("waiting: %+v", st)
	}
	s.types(t, "ip link add wan0 type veth peer name peer0; ip addr add 169.254.0.1/16 scope link dev wan0; ip addr add 198.51.100.1/24 dev wan0; ip link set wan0 name lan0")
	var st *control.TunnelStatus
	at := func(local string) {
		t.Helper()
		labtest.WaitFor(t, "the local end to be "+local, func() bool {
			st = s.status(t, "tun01")
			return st != nil && st.Index != 0 && st.Config.Local == netip.MustParseAddr(local)
		})
	}
	at("198.51.100.1")
	index := st.Index
	if out := s.types(t, "goipip show tun01"); !strings.Contains(out, "198.51.100.1 (lan0) → 192.0.2.17 (here)") {
		t.Errorf("goipip show:\n%s", out)
	}
	s.types(t, "ip addr add 198.51.101.1/24 dev lan0; ip addr del 198.51.100.1/24 dev lan0")
	at("198.51.101.1")
	s.types(t, "ip link del lan0")
	s.says(t, 1, "this name has no address any more", "name=lan0", "address=198.51.101.1")
	s.types(t, "ip link add lan0 type veth peer name peer0; ip addr add 198.51.102.1/24 dev lan0")
	at("198.51.102.1")
	if st.Index != index {
		t.Errorf("another link: index %d, before %d", st.Index, index)
	}
	s.signal(t, p, syscall.SIGTERM)
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
}

// What the words of ip tunnel change is an address from then on, and the other end stays a name.
func TestNames_Words(t *testing.T) {
	t.Parallel()
	s := newNamesSite(t)
	file := filepath.Join(s.etc, "goipip.toml")
	s.write(t, file, "[tunnel.tun01]\nlocal = \"eth0\"\nremote = \"here\"\nresolve-interval = \"1h\"\n")
	s.runs(t, "run", "--config", "/etc/goipip.toml")
	s.isAt(t, "tun01", "192.0.2.17")
	s.types(t, "goipip tunnel change tun01 ttl 9")
	if c := s.status(t, "tun01").Config; c.TTL != 9 || c.RemoteName != "here" || c.LocalDevice != "eth0" {
		t.Errorf("after a change of the ttl: %+v", c)
	}
	s.types(t, "goipip tunnel change tun01 remote 192.0.2.18")
	if c := s.status(t, "tun01").Config; c.RemoteName != "" || c.ResolveInterval != 0 || c.LocalDevice != "eth0" {
		t.Errorf("after a change of the remote end: %+v", c)
	}
	s.types(t, "ip addr add 192.0.3.1/24 dev eth0; ip addr del 192.0.2.1/24 dev eth0")
	labtest.WaitFor(t, "the local end to follow", func() bool { return s.status(t, "tun01").Config.Local.String() == "192.0.3.1" })
	s.isAt(t, "tun01", "192.0.2.18")
	if r := s.tries(t, "goipip tunnel add tun02 mode ipip remote here local 192.0.3.1"); r.status == 0 {
		t.Error("the words of ip tunnel take a name")
	}
}

func (s *site) pings(t *testing.T, to string) {
	t.Helper()
	labtest.WaitFor(t, "an answer of "+to, func() bool {
		r, err := s.Ping(labtest.Context(t), netip.MustParseAddr(to), netlab.PingOptions{})
		return err == nil && r.Received == 1
	})
}

func (s *site) signal(t *testing.T, p *netlab.Process, sig os.Signal) {
	t.Helper()
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// A remote end that does not answer is looked up at once, however long the answer holds, and a tunnel may be added by request.
func TestNames_Silence(t *testing.T) {
	t.Parallel()
	s := newNamesSite(t)
	s.write(t, s.hosts, "192.0.2.11 gw.example.net\n")
	dns := s.serve(t, 3600)
	var far []*netlab.Process
	for _, outer := range []string{"192.0.2.11", "192.0.2.12"} {
		if err := s.far.AddAddr("eth0", outer+"/24"); err != nil {
			t.Fatal(err)
		}
		p, err := s.far.Start(exec.Command(labtest.BuildGoipip(t), "-local", outer, "-remote", "192.0.2.1", "-address", "10.0.0.2", "-peer", "10.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		far = append(far, p)
	}
	s.write(t, filepath.Join(s.etc, "goipip.toml"), "[tunnel.other]\nremote = \"192.0.2.99\"\n")
	s.runs(t, "run", "--config", "/etc/goipip.toml")
	s.isAt(t, "other", "192.0.2.99")
	cfg := tunnel.Config{
		Name: "tun01", Local: netip.MustParseAddr("192.0.2.1"), RemoteName: "gw.example.net",
		Address: netip.MustParsePrefix("10.0.0.1/32"), Peer: netip.MustParseAddr("10.0.0.2"),
		Keepalive: tunnel.Duration(100 * time.Millisecond), KeepaliveRetries: 2,
	}
	if err := s.adds(cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.adds(cfg); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("added again: %v", err)
	}
	before := s.isAt(t, "tun01", "192.0.2.11")
	labtest.WaitFor(t, "an answer", func() bool { return s.status(t, "tun01").Keepalive.Carrier })

	s.write(t, s.hosts, "192.0.2.12 gw.example.net\n")
	s.signal(t, dns, syscall.SIGHUP)
	if err := far[0].Stop(); err != nil {
		t.Fatal(err)
	}
	s.says(t, 1, "the link's carrier is off", "tunnel=tun01")
	if after := s.isAt(t, "tun01", "192.0.2.12"); after.Index != before.Index {
		t.Errorf("another link: index %d, before %d", after.Index, before.Index)
	}
	s.says(t, 1, "the link's carrier is on again", "tunnel=tun01", "remote=192.0.2.12")
}

// adds asks the daemon to add a tunnel.
func (s *site) adds(cfg tunnel.Config) error {
	return s.Do(func() error {
		_, err := control.AddTunnel("", cfg, func() error { return errors.New("no daemon") })
		return err
	})
}
