//go:build linux

package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// captureLab is two hosts with a tunnel between them:
//
//	a tun01 10.0.0.1 ─ eth0 192.0.2.1 ──── eth0 192.0.2.2 ─ tun01 10.0.0.2 b
func captureLab(t *testing.T, needs ...string) (a, b computer) {
	t.Helper()
	labtest.Need(t, append([]string{"root", "tun", "ip", "tcpdump", "tshark"}, needs...)...)
	lab := labtest.New(t)
	hosts := map[string]*netlab.Host{}
	for _, name := range []string{"a", "b"} {
		host, err := lab.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts[name] = host
	}
	if err := lab.Veth(hosts["a"], "eth0", hosts["b"], "eth0"); err != nil {
		t.Fatal(err)
	}
	a, b = computerOn(t, hosts["a"]), computerOn(t, hosts["b"])
	for i, c := range []computer{a, b} {
		here, there := i+1, 2-i
		c.types(t, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0", here))
		c.types(t, fmt.Sprintf("goipip tunnel add tun01 mode ipip local 192.0.2.%d remote 192.0.2.%d", here, there))
		c.types(t, fmt.Sprintf("ip addr add 10.0.0.%d peer 10.0.0.%d dev tun01 && ip link set tun01 up", here, there))
		t.Cleanup(func() {
			_, _ = c.Output("ip", "link", "delete", "tun01") // which may be gone
			labtest.WaitFor(t, "the end of goipip", func() bool { return len(c.processes(t)) == 0 })
		})
	}
	return a, b
}

// ping sends one echo request from a to b through the tunnel, which is answered.
func (c computer) ping(t *testing.T, to string) {
	t.Helper()
	r, err := c.Ping(labtest.Context(t), netip.MustParseAddr(to), netlab.PingOptions{})
	if err != nil || r.Received != 1 {
		t.Fatalf("ping %s: %v, %v", to, r, err)
	}
}

// capturing is goipip capture that runs.
type capturing struct {
	*netlab.Process
	stdout, stderr *labtest.Output
}

// captures starts goipip capture tun01, and returns when it captures.
func (c computer) captures(t *testing.T, args ...string) capturing {
	t.Helper()
	p := capturing{stdout: &labtest.Output{}, stderr: &labtest.Output{}}
	cmd := exec.Command(labtest.BuildGoipip(t), append([]string{"capture", "tun01"}, args...)...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	var err error
	if p.Process, err = c.Start(cmd); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "the capture to begin", func() bool { return strings.Contains(p.stderr.String(), "Ctrl-C ends\n") })
	return p
}

// ends waits for the end of a capture, with what it says last.
func (p capturing) ends(t *testing.T, want string) {
	t.Helper()
	err := p.Wait(labtest.Context(t))
	if _, said, _ := strings.Cut(p.stderr.String(), "\n"); err != nil || said != want {
		t.Fatalf("the capture ends with %v, and says %q, want %q", err, said, want)
	}
}

func (p capturing) interrupt(t *testing.T) {
	t.Helper()
	if err := p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
}

// tshark returns fields of each packet in a file.
func tshark(t *testing.T, file string, fields ...string) []string {
	t.Helper()
	args := []string{"-r", file, "-T", "fields", "-E", "separator=;"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.CommandContext(labtest.Context(t), "tshark", args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	r := runCommand(t, cmd)
	if r.status != 0 {
		t.Fatalf("tshark: %+v", r)
	}
	return slices.Collect(strings.Lines(r.stdout))
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	for i := range want {
		want[i] += "\n"
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%q\nwant\n%q", what, got, want)
	}
}

// What passes the link, as far as the filter matches, until there are enough packets.
func TestCapture_Inner(t *testing.T) {
	t.Parallel()
	a, _ := captureLab(t)
	file := filepath.Join(t.TempDir(), "inner")
	p := a.captures(t, "-w", file, "-c2", "icmp[icmptype] != icmp-unreach", "and", "host", "10.0.0.2")
	all := a.captures(t)
	a.types(t, "bash -c 'echo x > /dev/udp/10.0.0.2/9'")
	a.ping(t, "10.0.0.2")
	p.ends(t, "2 packets captured, 0 lost\n")
	expect(t, "packets", tshark(t, file, "frame.interface_name", "frame.packet_flags_direction", "ip.src", "ip.dst", "icmp.type"),
		"tun01;0x00000002;10.0.0.1;10.0.0.2;8", "tun01;0x00000001;10.0.0.2;10.0.0.1;0")

	labtest.WaitFor(t, "the answer to be printed", func() bool { return strings.Contains(all.stdout.String(), "echo reply") })
	all.interrupt(t)
	if err := all.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	for _, want := range []string{" IP 10.0.0.1.", " > 10.0.0.2.9: UDP, length 2\n", " IP 10.0.0.1 > 10.0.0.2: ICMP echo request, "} {
		if !strings.Contains(all.stdout.String(), want) {
			t.Errorf("printed, without %q:\n%s", want, all.stdout)
		}
	}
}

// What passes the devices below is the outer packets, and ICMP errors about them.
func TestCapture_Outer(t *testing.T) {
	t.Parallel()
	a, b := captureLab(t)
	p := a.captures(t, "--side", "outer", "-w-", "-c4")
	a.ping(t, "192.0.2.2")
	a.ping(t, "10.0.0.2")
	b.types(t, "goipip tunnel del tun01")
	labtest.WaitFor(t, "b to take no packets of protocol 4", func() bool { return len(b.processes(t)) == 0 })
	a.tries(t, "ping -c 1 -W 0.2 10.0.0.2")
	p.ends(t, "4 packets captured, 0 lost\n")
	file := filepath.Join(t.TempDir(), "outer")
	if err := os.WriteFile(file, []byte(p.stdout.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "packets", tshark(t, file, "frame.interface_name", "frame.packet_flags_direction", "ip.src", "icmp.type"),
		"eth0;0x00000002;192.0.2.1,10.0.0.1;8", "eth0;0x00000001;192.0.2.2,10.0.0.2;0",
		"eth0;0x00000002;192.0.2.1,10.0.0.1;8", "eth0;0x00000001;192.0.2.2,192.0.2.1,10.0.0.1;3,8")
}

// ttlZero is an inner packet that G3 does not let pass.
func ttlZero() packet.IPv4 {
	p := make(packet.IPv4, packet.IPv4HdrLen+8)
	p.InitHeader()
	p.SetTotalLength(len(p))
	p.SetProtocol(packet.ProtoUDP)
	p.SetSource([4]byte{10, 0, 0, 2})
	p.SetDestination([4]byte{10, 0, 0, 1})
	p.UpdateChecksum()
	return p
}

// encapsulate has b send inner packets to a past its tunnel.
func (c computer) encapsulate(t *testing.T, inner ...packet.IPv4) {
	t.Helper()
	err := c.Do(func() error {
		conn, err := net.Dial("ip4:4", "192.0.2.1")
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, p := range inner {
			if _, err := conn.Write(p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tooBig sends a packet of 1800 bytes with DF, which a drops.
func (c computer) tooBig(t *testing.T) {
	t.Helper()
	c.types(t, "ip link set tun01 mtu 2000")
	if r := c.tries(t, "ping -c 1 -W 0.2 -M do -s 1772 10.0.0.2"); r.status == 0 {
		t.Fatalf("a packet that is too long arrives: %+v", r)
	}
}

const (
	dropIn  = "goipip: dropped, ttl_expired (rule G3), tunnel tun01, in"
	dropOut = "goipip: dropped, too_big (rule T7), tunnel tun01, out"
)

// What is dropped has the reason as its comment, with an outer header or without. Several
// captures see the same.
func TestCapture_Drops(t *testing.T) {
	t.Parallel()
	a, b := captureLab(t, "ping")
	dir := t.TempDir()
	inner, outer := filepath.Join(dir, "inner"), filepath.Join(dir, "outer")
	forInner := a.captures(t, "--drops", "-w", inner)
	forOuter := a.captures(t, "--drops", "--side=outer", "-w", outer)
	printed := a.captures(t, "--drops", "-c", "2")
	filtered := a.captures(t, "--drops", "udp")
	a.ping(t, "10.0.0.2")
	b.encapsulate(t, ttlZero())
	labtest.WaitFor(t, "the first", func() bool { return strings.Contains(filtered.stdout.String(), dropIn) })
	a.tooBig(t)
	printed.ends(t, "2 packets captured, 0 lost\n")
	for _, p := range []capturing{forInner, forOuter, filtered} {
		p.interrupt(t)
	}
	forInner.ends(t, "2 packets captured, 0 lost\n")
	forOuter.ends(t, "1 packets captured, 0 lost\n")
	filtered.ends(t, "1 packets captured, 0 lost\n")

	fields := []string{"frame.interface_name", "frame.packet_flags_direction", "frame.len", "ip.src", "frame.comment"}
	expect(t, "packets", tshark(t, inner, fields...), "tun01;0x00000001;28;10.0.0.2;"+dropIn, "tun01;0x00000002;1800;10.0.0.1;"+dropOut)
	expect(t, "outer packets", tshark(t, outer, fields...), "tun01;0x00000001;48;192.0.2.2,10.0.0.2;"+dropIn)
	lines := slices.Collect(strings.Lines(printed.stdout.String()))
	if len(lines) != 2 || !strings.HasSuffix(lines[0], "; "+dropIn+"\n") || !strings.HasSuffix(lines[1], "; "+dropOut+"\n") ||
		!strings.Contains(lines[1], " IP 10.0.0.1 > 10.0.0.2: ICMP echo request, ") {
		t.Errorf("printed:\n%s", printed.stdout)
	}
	if out := a.types(t, "tcpdump -n -r "+inner+" 2>/dev/null"); strings.Count(out, "\n") != 2 {
		t.Errorf("tcpdump reads\n%s", out)
	}
}

// A capture ends with its tunnel, and has all that came before.
func TestCapture_TunnelEnds(t *testing.T) {
	t.Parallel()
	a, b := captureLab(t)
	dir := t.TempDir()
	files := map[string]int{"inner": 2, "outer": 3, "drops": 1} // how many packets
	running := map[string]capturing{}
	for name := range files {
		args := []string{"-w", filepath.Join(dir, name), "--side", name}
		if name == "drops" {
			args[2] = "--drops"
			args = args[:3]
		}
		running[name] = a.captures(t, args...)
	}
	a.ping(t, "10.0.0.2")
	b.encapsulate(t, ttlZero())
	labtest.WaitFor(t, "the drop", func() bool { return strings.Contains(a.types(t, "goipip show tun01"), "ttl_expired") })
	a.types(t, "ip link delete tun01")
	for name, n := range files {
		running[name].ends(t, fmt.Sprintf("%d packets captured, 0 lost\n", n))
		if got := a.types(t, "tcpdump -n -r "+filepath.Join(dir, name)+" 2>/dev/null"); strings.Count(got, "\n") != n {
			t.Errorf("%s: the file has %s, want %d packets", name, got, n)
		}
	}
}

// While a fast path carries packets, a capture sees all that pass the link; and one of drops
// changes nothing, but sees what the fast path leaves to the engine.
func TestCapture_FastPath(t *testing.T) {
	t.Parallel()
	a, b := captureLab(t, "bpf")
	a.types(t, "goipip tunnel del tun01")
	fore := a.starts(t, "tunnel is up", "-name", "tun01", "-local", "192.0.2.1", "-remote", "192.0.2.2", "-address", "10.0.0.1", "-peer", "10.0.0.2", "-fast-path", "on")
	a.ping(t, "10.0.0.2")
	fast := func() bool { return strings.Contains(a.types(t, "goipip show tun01 --json"), `"used": true`) }
	labtest.WaitFor(t, "the fast path", fast)

	drops := a.captures(t, "--drops", "-c", "1")
	b.encapsulate(t, ttlZero())
	drops.ends(t, "1 packets captured, 0 lost\n")
	outer := a.captures(t, "--side", "outer", "-c", "2")
	a.ping(t, "10.0.0.2")
	outer.ends(t, "2 packets captured, 0 lost\n")
	if !fast() {
		t.Error("a capture of drops, or of outer packets, ends the fast path")
	}
	inner := a.captures(t, "-c", "2")
	a.ping(t, "10.0.0.2")
	inner.ends(t, "2 packets captured, 0 lost\n")
	labtest.WaitFor(t, "the fast path again", fast)
	if err := fore.Stop(); err != nil {
		t.Error(err)
	}
}

// Of a tunnel whose link was moved to another network namespace, all is captured but what passes
// the link.
func TestCapture_MovedLink(t *testing.T) {
	t.Parallel()
	a, b := captureLab(t)
	elsewhere, err := a.Start(exec.Command("unshare", "-n", "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "another network namespace", func() bool {
		here, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", a.daemon(t)))
		there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", elsewhere.Pid()))
		return err == nil && there != here
	})
	a.types(t, fmt.Sprintf("ip link set tun01 netns %d", elsewhere.Pid()))
	labtest.WaitFor(t, "the tunnel to know that", func() bool { return strings.Contains(a.types(t, "goipip show tun01 --json"), `"away": true`) })
	const want = "goipip: the link tun01 is in another network namespace: "
	if r := a.tries(t, "goipip capture tun01"); r.status != 1 || !strings.HasPrefix(r.stderr, want) {
		t.Errorf("%+v, want %q", r, want)
	}
	drops, outer := a.captures(t, "--drops", "-c1"), a.captures(t, "--side", "outer", "-c1")
	b.encapsulate(t, ttlZero())
	drops.ends(t, "1 packets captured, 0 lost\n")
	outer.ends(t, "1 packets captured, 0 lost\n")
	a.types(t, "goipip tunnel del tun01")
}

// A reader that has enough ends a capture without a word.
func TestCapture_ClosedPipe(t *testing.T) {
	t.Parallel()
	a, _ := captureLab(t)
	for _, args := range []string{"", "-w -"} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(labtest.BuildGoipip(t), append([]string{"capture", "tun01"}, strings.Fields(args)...)...)
		stderr := &labtest.Output{}
		cmd.Stdout, cmd.Stderr = write, stderr
		p, err := a.Start(cmd)
		write.Close()
		if err != nil {
			t.Fatal(err)
		}
		labtest.WaitFor(t, "the capture to begin", func() bool { return strings.Contains(stderr.String(), "Ctrl-C ends\n") })
		read.Close()
		ended := make(chan error, 1)
		go func() { ended <- p.Wait(labtest.Context(t)) }()
		labtest.WaitFor(t, "the end", func() bool {
			a.ping(t, "10.0.0.2")
			return len(ended) == 1
		})
		<-ended
		if _, said, _ := strings.Cut(stderr.String(), "\n"); said != "" || cmd.ProcessState.ExitCode() != 128+int(syscall.SIGPIPE) {
			t.Errorf("%q: status %d: %s", args, cmd.ProcessState.ExitCode(), said)
		}
	}
}

// Mistakes say what is wrong.
func TestCapture_Mistakes(t *testing.T) {
	t.Parallel()
	a, _ := captureLab(t, "setpriv")
	for _, c := range []struct {
		line   string
		status int
		want   string // how standard error begins
	}{
		{"goipip capture", 2, "goipip: capture needs the NAME of a tunnel (goipip show)\n"},
		{"goipip capture tun09", 1, "goipip: tunnel \"tun09\": no such tunnel\n"},
		{"goipip capture tun01 icmp or or", 1, "goipip: filter \"icmp or or\": can't parse filter expression: syntax error\n"},
		{"goipip capture tun01 ether host 00:00:5e:00:53:01", 1, "goipip: filter \"ether host 00:00:5e:00:53:01\": ethernet addresses supported only on "},
		{"PATH=/nowhere goipip capture tun01 icmp", 1, "goipip: filter \"icmp\": tcpdump is not installed: install it, or do without FILTER and with -w FILE\n"},
		{"PATH=/nowhere goipip capture tun01", 1, "goipip: tcpdump is not installed: install it, or do without FILTER and with -w FILE\n"},
		{"goipip capture tun01 -w /nowhere/file", 1, "goipip: open /nowhere/file: no such file or directory\n"},
		{"d=/run/goipip/$(stat -Lc %i /proc/self/ns/net)/control; unshare -n sh -c 'ip link set lo up; ip addr add 192.0.2.9/24 dev lo; \"$GOIPIP\" --control '$d' capture tun01 --side outer'", 1,
			"goipip: the link tun01 is not in this network namespace: "},
		{"goipip capture tun01 --side middle", 2, "goipip: --side middle: "},
		{"goipip capture tun01 -c x", 2, "goipip: -c, --count x: must be 1 to 2147483647\n"},
		{"goipip capture tun01 -c0", 2, "goipip: -c, --count 0: must be 1 to 2147483647\n"},
		{`cp "$GOIPIP" /tmp/goipip-$$ && chmod 755 /tmp/goipip-$$ && setpriv --reuid 65534 --clear-groups /tmp/goipip-$$ capture tun01 --drops; s=$?; rm /tmp/goipip-$$; exit $s`, 1, "goipip: control socket "},
	} {
		r := a.tries(t, c.line)
		if r.status != c.status || r.stdout != "" || !strings.HasPrefix(r.stderr, c.want) {
			t.Errorf("%s: %+v, want %q", c.line, r, c.want)
		}
	}
}

// A capture that is not read counts what it loses, and keeps the tunnel from nothing.
func TestCapture_Lost(t *testing.T) {
	t.Parallel()
	a, b := captureLab(t)
	p := a.captures(t, "--drops", "-w", filepath.Join(t.TempDir(), "file"))
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	dropped := func() (n int) {
		var all []control.Status
		if err := json.Unmarshal([]byte(a.types(t, "goipip show tun01 --json")), &all); err != nil {
			t.Fatal(err)
		}
		return int(all[0].Tunnels[0].RX.Drops["ttl_expired"])
	}
	labtest.WaitFor(t, "more drops than wait anywhere", func() bool {
		b.encapsulate(t, slices.Repeat([]packet.IPv4{ttlZero()}, 1000)...)
		return dropped() > 8000
	})
	a.ping(t, "10.0.0.2")
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.interrupt(t)
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Fatal(err)
	}
	_, said, _ := strings.Cut(p.stderr.String(), "\n")
	var captured, lost int
	if _, err := fmt.Sscanf(said, "%d packets captured, %d lost\n", &captured, &lost); err != nil || captured < 512 || lost == 0 || captured+lost != dropped() {
		t.Errorf("of %d packets: %s", dropped(), said)
	}
}
