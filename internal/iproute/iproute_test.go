package iproute

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"goipip/internal/tunnel"
)

// kernel keeps tunnels as the kernel's module does.
type kernel struct{ tunnels []Tunnel }

func (k *kernel) index(name string) int {
	return slices.IndexFunc(k.tunnels, func(t Tunnel) bool { return t.Config.Name == name })
}

func (k *kernel) Add(_ context.Context, cfg tunnel.Config) error {
	for i := 0; strings.Contains(cfg.Name, "%d"); i++ {
		if name := strings.Replace(cfg.Name, "%d", fmt.Sprint(i), 1); k.index(name) < 0 {
			cfg.Name = name
		}
	}
	for _, t := range k.tunnels {
		if t.Config.Name == cfg.Name || t.Config.Local == cfg.Local && t.Config.Remote == cfg.Remote {
			return syscall.EEXIST
		}
	}
	k.tunnels = append(k.tunnels, Tunnel{Config: cfg})
	return nil
}

func (k *kernel) Change(_ context.Context, name string, cfg tunnel.Config) error {
	i := k.index(name)
	if i < 0 {
		return syscall.ENODEV
	}
	cfg.Name, cfg.AnyProtocol = name, k.tunnels[i].Config.AnyProtocol
	k.tunnels[i].Config = cfg
	return nil
}

func (k *kernel) Delete(_ context.Context, name string) error {
	i := k.index(name)
	if i < 0 {
		return syscall.ENODEV
	}
	k.tunnels = slices.Delete(k.tunnels, i, i+1)
	return nil
}

func (k *kernel) List(context.Context, bool) ([]Tunnel, error) { return slices.Clone(k.tunnels), nil }

// types carries out a command line.
func (k *kernel) types(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	c, ok := Split(args)
	if !ok {
		t.Fatalf("%q is not recognized", args)
	}
	var out, errs bytes.Buffer
	status, err := c.Run(t.Context(), k, &out, &errs)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return out.String(), errs.String(), status
}

// What is ip's is recognized, and what is goipip's is not.
func TestSplit(t *testing.T) {
	for line, want := range map[string]string{
		"tunnel": "tunnel", "t": "tunnel", "tunl show": "tunnel", "l add": "link", "link": "link", "li del x": "link",
		"-s tunnel": "tunnel", "-s -s --json -p tunnel show": "tunnel", "-n ns1 t": "tunnel", "-netns=x t": "", "-c=auto t": "tunnel",
		"-f inet tunnel": "tunnel", "-6 tunnel": "tunnel", "-- tunnel": "tunnel", "-batch file tunnel": "tunnel",
		"": "", "tuntap": "", "tap": "", "token": "", "l2tp": "", "show": "", "run": "", "help": "", "link2": "", "-s": "", "-n": "",
		"-local 192.0.2.1 -remote 192.0.2.2": "", "--local=192.0.2.1": "", "-name tunnel": "", "-tos 10 tunnel": "", "-ttl 5": "",
		"-version": "", "-nopmtudisc": "", "-queues 2": "", "-dev link": "", "-address link": "", "-frobnicate tunnel": "",
	} {
		c, ok := Split(strings.Fields(line))
		if ok != (want != "") || c.object != want {
			t.Errorf("%s: %q, %v; want %q", line, c.object, ok, want)
		}
	}
	c, _ := Split(strings.Fields("-s -o -j -p -N -r -n ns1 -c=auto tunnel show x"))
	if want := (Options{true, true, true, true, true, true, ColorAuto, "ns1"}); c.Options != want || !slices.Equal(c.words, []string{"show", "x"}) {
		t.Errorf("%+v, want %+v", c, want)
	}
}

// What goipip has not got is refused in a line that begins with its name; all else is ip's (see the golden test).
func TestRefusals(t *testing.T) {
	for _, line := range []string{
		"-6 tunnel", "-batch f tunnel", "tunnel add x mode gre remote 192.0.2.1", "tunnel add x mode any remote 192.0.2.1", "tunnel show mode vti",
		"tunnel add gre1 remote 192.0.2.1", "tunnel prl", "tunnel 6rd", "tunnel add x mode ipip", "tunnel add x mode ipip local 192.0.2.1 remote 224.0.0.1",
		"tunnel add x mode ipip remote 255.255.255.255", "link", "link show", "link set x up", "link add x type veth", "link add x type ipip external",
		"link add x type ipip encap fou", "link add x txqueuelen 5 type ipip", "link add x type ipip", "link change x up type ipip",
	} {
		out, errs, status := new(kernel).types(t, strings.Fields(line)...)
		if status == 0 || out != "" || !strings.HasPrefix(errs, "goipip ") || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: status %d, %q, %q", line, status, out, errs)
		}
	}
}

// A name that means another mode to ip is one like others for a tunnel that there is.
func TestNamesOfOtherModes(t *testing.T) {
	for _, name := range []string{"gre1", "sit1", "vti1", "isatap1"} {
		for _, last := range []string{"tunnel del " + name, "tunnel del " + name + " mode gre"} {
			k := new(kernel)
			for _, line := range []string{"tunnel add " + name + " mode ipip remote 192.0.2.1", "tunnel change " + name + " ttl 5", "tunnel show " + name, last} {
				out, errs, status := k.types(t, strings.Fields(line)...)
				if status != 0 || errs != "" || strings.Contains(line, "show") && out != name+": ip/ip remote 192.0.2.1 local any ttl 5\n" {
					t.Errorf("%s: status %d, %q, %q", line, status, out, errs)
				}
			}
			if _, errs, status := k.types(t, strings.Fields(last)...); status != 255 || !strings.HasPrefix(errs, "goipip makes ipip tunnels only") {
				t.Errorf("again, %s: status %d, %q", last, status, errs)
			}
		}
	}
}

// host lacks something.
type host struct {
	kernel
	err error
}

func (h *host) Add(context.Context, tunnel.Config) error { return h.err }

// What the kernel says of a tunnel, goipip says as ip; a reason that ip could not know has a line of its own.
func TestReasons(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("create tun: %w", syscall.EEXIST), "add tunnel \"tunl0\" failed: File exists\n"},
		{fmt.Errorf("open /dev/net/tun: %w: load the tun module", syscall.ENOENT),
			"add tunnel \"tunl0\" failed: No such file or directory\ngoipip: open /dev/net/tun: no such file or directory: load the tun module\n"},
		{fmt.Errorf("create tun: %w: needs CAP_NET_ADMIN", syscall.EPERM),
			"add tunnel \"tunl0\" failed: Operation not permitted\ngoipip: create tun: operation not permitted: needs CAP_NET_ADMIN\n"},
	} {
		c0, _ := Split(strings.Fields("tunnel add x mode ipip remote 192.0.2.1"))
		var out, errs bytes.Buffer
		if status, err := c0.Run(t.Context(), &host{err: c.err}, &out, &errs); status != 1 || err != nil || errs.String() != c.want {
			t.Errorf("%v: status %d, %v, %q; want %q", c.err, status, err, &errs, c.want)
		}
	}
	c, _ := Split(strings.Fields("link add x type ipip remote 192.0.2.1"))
	var out, errs bytes.Buffer
	if status, err := c.Run(t.Context(), &host{err: fmt.Errorf("x: %w: y", syscall.EPERM)}, &out, &errs); status != 2 || err != nil ||
		errs.String() != "RTNETLINK answers: Operation not permitted\ngoipip: x: operation not permitted: y\n" {
		t.Errorf("by link: status %d, %v, %q", status, err, &errs)
	}
	c, _ = Split(strings.Fields("tunnel add x mode ipip remote 192.0.2.1"))
	plain := fmt.Errorf("no daemon")
	if status, err := c.Run(t.Context(), &host{err: plain}, &out, &errs); status != 0 || err != plain {
		t.Errorf("without errno: status %d, %v", status, err)
	}
}

// Colours and counters, without a kernel that counts.
func TestPrint(t *testing.T) {
	k := &kernel{[]Tunnel{{Counters: map[string]uint64{
		"rx_packets": 1, "rx_bytes": 2, "rx_errors": 3, "rx_frame_errors": 4, "tx_packets": 5, "tx_bytes": 6, "tx_errors": 7, "collisions": 8, "tx_carrier_errors": 9, "tx_dropped": 10,
	}}}}
	k.tunnels[0].Config.Name = `a"b`
	out, _, _ := k.types(t, "-s", "tunnel")
	const want = "a\"b: ip/ip remote any local any ttl inherit\n" +
		"RX: Packets    Bytes        Errors CsumErrs OutOfSeq Mcasts\n    1          2            3      4        0        0       \n" +
		"TX: Packets    Bytes        Errors DeadLoop NoRoute  NoBufs\n    5          6            7      8        9        10    \n"
	if out != want {
		t.Errorf("%q\nwant\n%q", out, want)
	}
	if out, _, _ := k.types(t, "-j", "tunnel"); !strings.HasPrefix(out, `[{"ifname":"a\"b",`) {
		t.Errorf("as JSON: %s", out)
	}
	for background, want := range map[string]string{"": "\x1b[36m", "15;0": "\x1b[1;36m", "0;15": "\x1b[36m", "x;8": "\x1b[1;36m", "0;7": "\x1b[36m"} {
		t.Setenv("COLORFGBG", background)
		if out, _, _ := k.types(t, "-c", "tunnel"); !strings.HasPrefix(out, want+"a\"b: \x1b[0mip/ip") {
			t.Errorf("with COLORFGBG=%s: %q", background, out)
		}
	}
}

func TestNumbers(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "10": 10, "0x10": 16, "0X1f": 31, "010": 8, " 7": 7, "+7": 7, "00": 0, "255": 255,
		"": -1, "x": -1, "0x": -1, "08": -1, "1 ": -1, "-1": -1, "256": -1, "99999999999999999999": -1, "++1": -1,
	} {
		n, ok := number(s, 255)
		if ok != (want >= 0) || ok && int64(n) != want {
			t.Errorf("%q: %d, %v; want %d", s, n, ok, want)
		}
	}
}

// The random command lines of a fuzz run neither crash nor print results beside an error.
func FuzzWords(f *testing.F) {
	for _, line := range []string{
		"tunnel add x mode ipip remote 192.0.2.1 local any ttl 64 tos inherit/EF dev lo", "-s -j -p tunnel show x", "tunnel change x pmtudisc nopmtudisc",
		"link add x mtu 1400 type ipip remote 10.8 fwmark 0x7 mode any", "link change x type ipip tos CS1", "tunnel del mode ipip remote 1.2.3.4", "t h", "-n x -c=auto l d x",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		k := &kernel{}
		k.types(t, strings.Fields("tunnel add x mode ipip remote 192.0.2.1")...)
		args := strings.Split(line, " ")
		c, ok := Split(args)
		if !ok || c.Options.Resolve {
			return
		}
		var out, errs bytes.Buffer
		status, err := c.Run(t.Context(), k, &out, &errs)
		if err != nil || !slices.Contains([]int{0, 1, 2, 255}, status) || (status == 0) != (errs.Len() == 0) || status != 0 && out.Len() > 0 {
			t.Errorf("%q: status %d, %v, output %q, errors %q", args, status, err, &out, &errs)
		}
		for _, tunnel := range k.tunnels {
			if !tunnel.Config.Remote.Is4() || !validName(tunnel.Config.Name) || tunnel.Config.TTL != 0 && tunnel.Config.NoPMTUDisc {
				t.Errorf("%q makes %+v", args, tunnel.Config)
			}
		}
	})
}
