//go:build linux

package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab/labtest"

	"github.com/creack/pty"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// result is what a person sees of a command that ended.
type result struct {
	status         int
	stdout, stderr string
}

func runCommand(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func goipip(t *testing.T, args ...string) result {
	t.Helper()
	return runCommand(t, exec.CommandContext(labtest.Context(t), labtest.BuildGoipip(t), args...))
}

func TestUsageErrors(t *testing.T) {
	const local, remote = "-local=192.0.2.1", "-remote=192.0.2.2"
	for _, c := range []struct {
		args string
		want string // the first line on standard error, or how it begins
	}{
		{"", "goipip: --remote is missing"},
		{local, "goipip: --remote is missing"},
		{"-local any -remote 0.0.0.0", "goipip: --remote 0.0.0.0: not the address of one host"},
		{"-local 192.0.2.300 " + remote, "goipip: --local 192.0.2.300: must be an IPv4 address"},
		{local + " --remote 2001:db8::1", "goipip: --remote 2001:db8::1: ipip runs over IPv4 only"},
		{local + " " + remote + " -frobnicate", "goipip: unknown flag: --frobnicate"},
		{local + " " + remote + " --frobnicate=1", "goipip: unknown flag: --frobnicate"},
		{local + " " + remote + " -z", "goipip: unknown shorthand flag: 'z'"},
		{local + " " + remote + " extra", "goipip: unknown word extra"},
		{local + " " + remote + " -name", "goipip: flag needs an argument: --name"},
		{local + " " + remote + " -name a-name-too-long", ""},
		{local + " " + remote + " -name a-name-too-long-by-far", `goipip: --name "a-name-too-long-by-far"`},
		{local + " " + remote + " -mtu 67", "goipip: --mtu 67"},
		{local + " " + remote + " -mtu many", "goipip: --mtu many: must be "},
		{local + " " + remote + " -ttl 256", "goipip: --ttl 256: must be "},
		{local + " " + remote + " -ttl 5 -nopmtudisc", "goipip: ttl != 0 and nopmtudisc are incompatible"},
		{local + " " + remote + " -tos 100", "goipip: --tos 100: must be "},
		{local + " " + remote + " -offload on", "goipip: --offload on: must be auto or off"},
		{local + " " + remote + " -metrics 9747", "goipip: --metrics 9747: must be a port, such as :9747"},
		{local + " " + remote + " -log-format xml", "goipip: --log-format xml: must be auto or text or json or journal"},
		{local + " " + remote + " -clamp-mss 535", "goipip: --clamp-mss 535: must be off, auto, or 536 ("},
		{local + " " + remote + " -log-level loud", "goipip: --log-level loud: must be "},
		{local + " " + remote + " -peer 10.0.0.2", "goipip: --peer 10.0.0.2 needs --address"},
		{"demo now", "goipip: unknown word now"},
	} {
		if c.want == "" {
			continue
		}
		r := goipip(t, strings.Fields(c.args)...)
		if r.status != 2 || !strings.HasPrefix(r.stderr, c.want) || r.stdout != "" {
			t.Errorf("goipip %s: status %d, stdout %q, stderr %q; want status 2 and %q", c.args, r.status, r.stdout, r.stderr, c.want)
		}
	}
}

// TestEveryFlagInEverySpelling gives each flag with one dash and two, with = and
// without. What is wrong with all of them is the name.
func TestEveryFlagInEverySpelling(t *testing.T) {
	const wrong = "goipip: --name \"a/b\": not a name that a link can have\nTry 'goipip --help'.\n"
	for _, dash := range []string{"-", "--"} {
		for _, equals := range []string{"=", " "} {
			var args []string
			for _, f := range [][2]string{
				{"local", "192.0.2.1"}, {"remote", "192.0.2.2"}, {"name", "a/b"}, {"address", "10.0.0.1"}, {"peer", "10.0.0.2"},
				{"mtu", "1400"}, {"ttl", "64"}, {"tos", "0x10"}, {"dev", "eth0"}, {"queues", "2"}, {"offload", "off"}, {"tx", "raw"}, {"fast-path", "auto"}, {"clamp-mss", "auto"},
				{"metrics", ":9747"}, {"log-level", "debug"}, {"log-format", "json"},
			} {
				args = append(args, strings.Fields(dash+f[0]+equals+f[1])...)
			}
			if r := goipip(t, args...); r.status != 2 || r.stderr != wrong {
				t.Errorf("goipip %v: status %d, stderr %q", args, r.status, r.stderr)
			}
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"-h", "-help", "--help"} {
		r := goipip(t, arg)
		if r.status != 0 || r.stderr != "" {
			t.Errorf("goipip %s: status %d, stderr %q", arg, r.status, r.stderr)
		}
		for _, flag := range []string{"local", "remote", "name", "address", "peer", "mtu", "ttl", "tos", "nopmtudisc", "dev",
			"queues", "offload", "tx", "fast-path", "clamp-mss", "metrics", "log-level", "log-format", "version", "help"} {
			if !strings.Contains(r.stdout, "--"+flag) {
				t.Errorf("goipip %s does not mention --%s", arg, flag)
			}
		}
	}
	for _, arg := range []string{"-version", "--version", "-v"} {
		if r := goipip(t, arg); r.status != 0 || !strings.HasPrefix(r.stdout, "goipip version ") {
			t.Errorf("goipip %s: %+v", arg, r)
		}
	}
	if r := goipip(t, "tunnel", "add", "--help"); r.status != 0 || !strings.Contains(r.stdout, "goipip tunnel add NAME mode ipip") {
		t.Errorf("goipip tunnel add --help: %+v", r)
	}
}

// TestMissingThings takes away what goipip needs, one by one.
func TestMissingThings(t *testing.T) {
	labtest.Need(t, "root", "tun")
	binary := labtest.BuildGoipip(t)
	// A network namespace of its own keeps the test off this machine's links.
	const noTUN = `mount -t tmpfs none /dev/net && exec "$@"`
	const noDriver = `mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 77 && exec "$@"`
	const netAdmin = `exec setpriv --bounding-set=-net_admin "$@"`
	const netRaw = `exec setpriv --bounding-set=-net_raw "$@"`
	for name, c := range map[string]struct{ script, want string }{
		"no device node":   {noTUN, "goipip: create tun \"tun01\": open /dev/net/tun: no such file or directory: load the tun module (modprobe tun), or start the container with --device /dev/net/tun\n"},
		"no driver":        {noDriver, "goipip: create tun \"tun01\": open /dev/net/tun: no such device: load the tun module (modprobe tun), or start the container with --device /dev/net/tun\n"},
		"no CAP_NET_ADMIN": {netAdmin, "goipip: create tun \"tun01\": operation not permitted: needs CAP_NET_ADMIN: run as root, or start the container with --cap-add NET_ADMIN\n"},
		"no CAP_NET_RAW":   {netRaw, "goipip: open raw socket: permission denied: needs CAP_NET_RAW: run as root, or start the container with --cap-add NET_RAW\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := runCommand(t, exec.CommandContext(labtest.Context(t), "unshare", "--net", "--mount",
				"sh", "-c", c.script, "sh", binary, "-name", "tun01", "-local", "192.0.2.1", "-remote", "192.0.2.2"))
			if r.status != 1 || r.stderr != c.want {
				t.Errorf("status %d, stderr\n%swant\n%s", r.status, r.stderr, c.want)
			}
			r = runCommand(t, exec.CommandContext(labtest.Context(t), "unshare", "--net", "--mount", "sh", "-c", c.script, "sh",
				binary, "tunnel", "add", "tun01", "mode", "ipip", "local", "192.0.2.1", "remote", "192.0.2.2"))
			if r.status != 1 || !strings.HasSuffix(r.stderr, c.want) || strings.Count(r.stderr, "\n") > 2 {
				t.Errorf("by words: status %d, stderr\n%swant\n%s", r.status, r.stderr, c.want)
			}
		})
	}
}

// TestHazard20_ErrorsInJSON has errors that end the process in the format of the log,
// and usage errors for people.
func TestHazard20_ErrorsInJSON(t *testing.T) {
	labtest.Need(t, "root", "tun")
	binary := labtest.BuildGoipip(t)
	inNamespace := func(args ...string) result {
		return runCommand(t, exec.CommandContext(labtest.Context(t), "unshare", append([]string{"--net", binary}, args...)...))
	}
	r := inNamespace("-log-format", "json", "-name", "lo", "-local", "192.0.2.1", "-remote", "192.0.2.2")
	if r.status != 1 {
		t.Errorf("with a name that is taken: status %d, stderr %q", r.status, r.stderr)
	}
	lines := 0
	for line := range strings.Lines(r.stderr) {
		lines++
		var record struct {
			Time       time.Time
			Level, Msg string
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if record.Level != "ERROR" || record.Time.IsZero() || !strings.HasPrefix(record.Msg, `create tun "lo": `) {
			t.Errorf("%q: want the level ERROR, the time, and what happened", line)
		}
	}
	if lines != 1 {
		t.Errorf("%d lines, want one: %q", lines, r.stderr)
	}

	const want = "goipip: --mtu 1: must be 68 to 65515\nTry 'goipip --help'.\n"
	r = inNamespace("-log-format", "json", "-mtu", "1", "-local", "192.0.2.1", "-remote", "192.0.2.2")
	if r.status != 2 || r.stderr != want {
		t.Errorf("a usage error: status %d, stderr %q; want status 2 and %q", r.status, r.stderr, want)
	}
}

// TestHazard1_ErrorWithoutReader fails a start whose standard error nobody reads: a
// pipe that is full, or without a reader.
func TestHazard1_ErrorWithoutReader(t *testing.T) {
	binary := labtest.BuildGoipip(t)
	for name, gone := range map[string]bool{"full": false, "gone": true} {
		for _, args := range []string{"-local 192.0.2.1 -remote 0.0.0.0", "-frobnicate"} {
			t.Run(name+" "+args, func(t *testing.T) {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if gone {
					r.Close()
				} else {
					w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
					for err == nil {
						_, err = w.Write(make([]byte, 4096))
					}
				}
				cmd := exec.Command(binary, strings.Fields(args)...)
				cmd.Stderr = w
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				w.Close()
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				select {
				case <-ended:
				case <-time.After(10 * time.Second):
					cmd.Process.Kill()
					<-ended
				}
				if status := cmd.ProcessState.ExitCode(); status != 2 {
					t.Errorf("%v, want exit status 2", cmd.ProcessState)
				}
			})
		}
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun")
	r := goipip(t, "demo")
	if r.status != 0 {
		t.Fatalf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	for _, want := range []string{
		"ns01# goipip -name tun01 -local 192.168.6.101 -remote 192.168.8.101 &\n",
		"<POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1480",
		"64 bytes from 172.56.2.101: icmp_seq=3 ttl=64 time=",
		"3 packets transmitted, 3 received, 0% packet loss",
		"IP 192.168.6.101 > 192.168.8.101: IP 172.56.1.101 > 172.56.2.101: ICMP echo request",
		"Gbit/s, and the SHA-256 of both ends is the same",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("the demo does not show %q:\n%s", want, r.stdout)
		}
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "bpf")
	doctor := func(script string) result {
		return runCommand(t, exec.CommandContext(labtest.Context(t), "unshare", "--net", "--mount",
			"sh", "-c", script, "sh", labtest.BuildGoipip(t), "doctor"))
	}
	healthy := doctor(`exec "$@"`)
	if lines := strings.Count(healthy.stdout, "\n"); healthy.status != 0 || lines < 10 || strings.Count("\n"+healthy.stdout, "\nok       ") != lines {
		t.Errorf("with everything there: %+v", healthy)
	}
	r := doctor(`exec setpriv --bounding-set=-net_raw "$@"`)
	if r.status != 1 || !strings.Contains(r.stdout, "failure  net-raw          CAP_NET_RAW is missing\n") || !strings.Contains(r.stdout, "--cap-add NET_RAW") {
		t.Errorf("without CAP_NET_RAW: %+v", r)
	}
	r = doctor(`exec setpriv --bounding-set=-bpf,-sys_admin "$@"`)
	if r.status != 0 || !strings.Contains(r.stdout, "warning  fast-path        operation not permitted: needs CAP_BPF") {
		t.Errorf("without CAP_BPF: %+v", r)
	}
	for args, want := range map[string]string{
		"--probe gateway":                            "--probe gateway: not an IPv4 address",
		"--config a.toml --remote 192.0.2.1":         "give either --config or the options of a tunnel",
		"--local 192.0.2.1":                          "--remote is missing",
		"--local 192.0.2.1 --remote 192.0.2.2 other": "unknown word other",
	} {
		if r := goipip(t, append([]string{"doctor"}, strings.Fields(args)...)...); r.status != 2 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %+v, want status 2 and %q", args, r, want)
		}
	}
}

// Statuses are in colour on a terminal, unless NO_COLOR is set.
func TestDoctor_Colour(t *testing.T) {
	labtest.Need(t, "root", "tun", "bpf")
	for env, want := range map[string]string{"TERM=xterm": "\x1b[32mok     \x1b[0m  tun", "NO_COLOR=1": "ok       tun"} {
		ptmx, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer ptmx.Close()
		cmd := exec.CommandContext(labtest.Context(t), "unshare", "--net", labtest.BuildGoipip(t), "doctor")
		cmd.Env, cmd.Stdout = append(os.Environ(), "TERM=xterm", env), tty
		err = cmd.Start()
		tty.Close()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(ptmx) // EIO at the end
		if err := cmd.Wait(); err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s: %v: %q, want %q first", env, err, out, want)
		}
	}
}

// Where the kernel does not take BPF programs, -fast-path on says why, and auto does without.
func TestFastPathRefused(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "bpf")
	run := func(mode string) result {
		return runCommand(t, exec.CommandContext(labtest.Context(t), "unshare", "--net", "--mount", "setpriv", "--bounding-set=-bpf,-sys_admin",
			"timeout", "--signal=TERM", "1", labtest.BuildGoipip(t), "-local", "192.0.2.1", "-remote", "192.0.2.2", "-fast-path", mode))
	}
	if r := run("on"); r.status != 1 || !strings.Contains(r.stderr, "fast path: operation not permitted: needs CAP_BPF") {
		t.Errorf("on: %+v", r)
	}
	if r := run("auto"); strings.Count(r.stderr, "no fast path") != 1 || !strings.Contains(r.stderr, "tunnel is down") {
		t.Errorf("auto: %+v", r)
	}
}

// TestO8_TunnelShow makes two tunnels in the words of ip-tunnel(8), and has them
// shown.
func TestO8_TunnelShow(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "tun")
	binary := labtest.BuildGoipip(t)
	host, err := labtest.New(t).Host("host")
	if err != nil {
		t.Fatal(err)
	}
	for _, tunnel := range []string{
		"tun01 mode ipip remote 192.168.8.101 local 192.168.6.101",
		"tun02 mode ipip remote 192.168.8.102 local 192.168.6.101 ttl 64 tos 10 dev lo",
	} {
		if out, err := host.Output(binary, append([]string{"tunnel", "add"}, strings.Fields(tunnel)...)...); err != nil {
			t.Fatal(out, err)
		}
	}
	const want = "tun01: ip/ip remote 192.168.8.101 local 192.168.6.101 ttl inherit\n" +
		"tun02: ip/ip remote 192.168.8.102 local 192.168.6.101 dev lo ttl 64 tos 0x10\n"
	out, err := host.Output(binary, "tunnel", "show")
	if err != nil || out != want {
		t.Errorf("goipip tunnel show: %v\n%swant\n%s", err, out, want)
	}
	for _, name := range []string{"tun01", "tun02"} {
		if err := host.DeleteLink(name); err != nil {
			t.Error(err)
		}
	}
	out, err = host.Output(binary, "tunnel", "show")
	if err != nil || out != "" {
		t.Errorf("without tunnels: %q, %v", out, err)
	}
}
