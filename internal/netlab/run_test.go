package netlab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// configured are two hosts, with goipip run on both, and tunnels between addresses of them
// that are numbered from 1.
type configured struct {
	t        *testing.T
	a, b     *netlab.Host
	fileA    string
	daemonA  *background
	settings map[int]string // of a's tunnels, by number
}

// newConfigured starts tunnels of these numbers.
func newConfigured(t *testing.T, numbers ...int) *configured {
	t.Helper()
	labtest.Need(t, "tun")
	lab := labtest.New(t)
	c := &configured{t: t, a: newHost(t, lab, "a"), b: newHost(t, lab, "b"), settings: map[int]string{}}
	errs := []error{lab.Veth(c.a, "eth0", c.b, "eth0")}
	for i := range 9 {
		errs = append(errs,
			c.a.AddAddr("eth0", fmt.Sprintf("192.168.6.%d/24", 11+i)),
			c.b.AddAddr("eth0", fmt.Sprintf("192.168.6.%d/24", 21+i)))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	c.fileA = filepath.Join(t.TempDir(), "a.toml")
	fileB := filepath.Join(t.TempDir(), "b.toml")
	var b strings.Builder
	for n := 1; n <= 9; n++ {
		fmt.Fprintf(&b, "[tunnel.b%[1]d]\nlocal = \"192.168.6.%[2]d\"\nremote = \"192.168.6.%[3]d\"\naddress = \"172.16.2.%[1]d\"\npeer = \"172.16.1.%[1]d\"\n", n, 20+n, 10+n)
	}
	c.write(fileB, b.String())
	for _, n := range numbers {
		c.settings[n] = ""
	}
	c.writeA()
	up(t, start(t, c.b, goipipCommand(t, "run", "--config", fileB)), 9)
	c.daemonA = start(t, c.a, goipipCommand(t, "run", "--config", c.fileA))
	up(t, c.daemonA, len(numbers))
	return c
}

// up returns when a daemon has said of so many tunnels that they are up.
func up(t *testing.T, d *background, tunnels int) {
	t.Helper()
	labtest.WaitFor(t, "all tunnels to be up", func() bool {
		if ended(d) {
			t.Fatalf("goipip ended early: %v", d.err)
		}
		return strings.Count(d.out.String(), "tunnel is up") == tunnels
	})
}

func (c *configured) write(file, content string) {
	c.t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// writeA writes a's configuration.
func (c *configured) writeA() {
	var text strings.Builder
	for n := range 10 {
		if settings, ok := c.settings[n]; ok {
			fmt.Fprintf(&text, "[tunnel.a%[1]d]\nlocal = \"192.168.6.%[2]d\"\nremote = \"192.168.6.%[3]d\"\naddress = \"172.16.1.%[1]d\"\npeer = \"172.16.2.%[1]d\"\n%[4]s\n",
				n, 10+n, 20+n, settings)
		}
	}
	c.write(c.fileA, text.String())
}

// reload has a read its configuration, and returns when it has said something about it.
func (c *configured) reload(says string) {
	c.t.Helper()
	before := strings.Count(c.daemonA.out.String(), says)
	if err := c.daemonA.Signal(unix.SIGHUP); err != nil {
		c.t.Fatal(err)
	}
	labtest.WaitFor(c.t, "the daemon to say "+says, func() bool { return strings.Count(c.daemonA.out.String(), says) > before })
}

// passes fails the test unless pings through a's tunnels of these numbers are answered.
func (c *configured) passes(numbers ...int) {
	c.t.Helper()
	for _, n := range numbers {
		r, err := c.a.Ping(labtest.Context(c.t), netip.AddrFrom4([4]byte{172, 16, 2, byte(n)}), netlab.PingOptions{Count: 3, Timeout: answerTime})
		if err != nil || r.Received != 3 {
			c.t.Errorf("ping through tunnel %d: %v, %v", n, r, err)
		}
	}
}

func (c *configured) index(n int) int {
	c.t.Helper()
	link, err := c.a.Netlink().LinkByName(fmt.Sprintf("a%d", n))
	if err != nil {
		return 0
	}
	return link.Attrs().Index
}

// One tunnel's end is its own, and a configuration that is read again touches what is
// different.
func TestRun(t *testing.T) {
	t.Parallel()
	c := newConfigured(t, 1, 2, 3)
	c.passes(1, 2, 3)
	if err := c.a.DeleteLink("a2"); err != nil {
		t.Fatal(err)
	}
	c.daemonA.out.waitFor(t, "tunnel is down\" tunnel=a2")
	c.passes(1, 3)
	for _, n := range []int{1, 3} {
		if err := c.daemonA.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		c.daemonA.out.waitFor(t, fmt.Sprintf("msg=counters tunnel=a%d tx.packets=6", n))
	}

	// The same again brings back the one that ended.
	before := c.index(1)
	c.reload("was read again")
	c.passes(1, 2, 3)

	// One goes, one comes, one changes.
	delete(c.settings, 3)
	c.settings[4], c.settings[2] = "", "ttl = 7\nroutes = [{to = \"10.9.0.0/16\", metric = 5}]\naddresses = [\"10.8.0.1/24\"]"
	c.writeA()
	c.reload("was read again")
	c.passes(1, 2, 4)
	if c.index(1) != before || c.index(3) != 0 {
		t.Errorf("tunnel 1 has index %d, before %d; tunnel 3 has %d", c.index(1), before, c.index(3))
	}
	labtest.Need(t, "ip")
	if out := run(t, c.a, "ip route show dev a2"); !strings.Contains(out, "10.9.0.0/16") || !strings.Contains(out, "metric 5") || !strings.Contains(out, "10.8.0.0/24") {
		t.Errorf("routes by a2: %s", out)
	}

	// An error changes nothing, and is told with its place.
	c.write(c.fileA, "[tunnel.a1]\nlocal = \"192.168.6.11\"\nremot = \"192.168.6.21\"\n")
	c.reload("nothing has changed")
	if log := c.daemonA.out.String(); !strings.Contains(log, c.fileA+":3:1: tunnel.a1.remot") {
		t.Errorf("the log has no place:\n%s", log)
	}
	c.passes(1, 2, 4)

	if err := c.daemonA.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.daemonA.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	for n := range 10 {
		if c.index(n) != 0 {
			t.Errorf("tunnel %d is still there", n)
		}
	}
}

// What keeps a tunnel from starting is told with its name, and does not keep the others
// from it, but with --strict; with an error in the configuration none starts.
func TestRun_Start(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "tun")
	lab := labtest.New(t)
	host := newHost(t, lab, "host")
	dir := t.TempDir()
	table := func(name string, n int) string {
		return fmt.Sprintf("[tunnel.%s]\nlocal = \"127.0.0.1\"\nremote = \"127.0.1.%d\"\n", name, n)
	}
	good, taken, wrong := table("good", 1), table("lo", 2), table("wrong", 3)+"mtu = \"big\"\n"
	for _, tt := range []struct {
		name, config, option string
		status               int // of an end by itself; -1 for none
		says                 []string
	}{
		{"one of two", good + taken, "", -1, []string{"tunnel=lo", "file exists", "tunnel is up\" tunnel=good"}},
		{"strict", good + taken, "--strict", 1, []string{"tunnel=lo", "--strict"}},
		{"none", taken, "", 1, []string{"none of the tunnels starts"}},
		{"error", good + wrong, "", 1, []string{"error.toml:7:7: tunnel.wrong.mtu"}},
		{"two pairs", good, "--workers 2", -1, []string{"tunnel is up\" tunnel=good"}},
		{"99 pairs", good, "--workers 99", 2, []string{"--workers 99: must be 1 to 64"}},
		{"empty", "", "", 1, []string{"empty.toml"}},
	} {
		file := filepath.Join(dir, tt.name+".toml")
		if err := os.WriteFile(file, []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"run", "--config", file}, strings.Fields(tt.option)...)
		d := start(t, host, goipipCommand(t, args...))
		for _, text := range tt.says {
			d.out.waitFor(t, text)
		}
		if tt.status < 0 {
			if err := d.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			tt.status = 0
		}
		if got := status(t, d); got != tt.status {
			t.Errorf("%s: status %d, want %d", tt.name, got, tt.status)
		}
		check := start(t, host, goipipCommand(t, "check", "--config", file))
		if got, fails := status(t, check), strings.Contains(tt.name, "e") && tt.config != good+taken && tt.config != taken; (got != 0) != fails {
			t.Errorf("%s: goipip check ends with status %d: %s", tt.name, got, check.out.String())
		}
	}
	if got := links(t, host); len(got) != 1 {
		t.Errorf("the links are %v", got)
	}
}

// A change of all that needs no new link keeps the link, and loses no packet, of this tunnel
// or another.
func TestRun_ChangesInPlace(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	c := newConfigured(t, 1, 2)
	index := c.index(1)
	for _, tt := range []struct {
		settings string
		shows    string // what shows that
	}{
		{"ttl = 7", "ip link show a1 | grep 'ttl 7'"},
		{"tos = \"0x10\"", "ip link show a1 | grep 'tos 0x10'"},
		{"nopmtudisc = true", "ip link show a1 | grep nopmtudisc"},
		{"mtu = 1400", "ip link show a1 | grep 'mtu 1400'"},
		{"dev = \"eth0\"", "ip link show a1 | grep 'dev eth0'"},
		{"fwmark = 7", "true"},
		{"tx = \"raw\"", "true"},
		{"icmp = \"rfc2003\"", "true"},
		{"addresses = [\"10.8.0.1/24\"]", "ip addr show a1 | grep 10.8.0.1/24"},
		{"routes = [{to = \"10.9.0.0/16\"}]", "ip route show dev a1 | grep 10.9.0.0/16 && ! ip addr show a1 | grep 10.8.0.1"},
		{"", "ip link show a1 | grep 'mtu 1480' && ! ip route show dev a1 | grep 10.9.0.0/16"},
	} {
		pings := make(chan netlab.PingResult, 2)
		for _, n := range []int{1, 2} {
			go func() {
				r, err := c.a.Ping(labtest.Context(t), netip.AddrFrom4([4]byte{172, 16, 2, byte(n)}),
					netlab.PingOptions{Count: 100, Interval: 2 * time.Millisecond, Timeout: answerTime})
				if err != nil {
					t.Error(err)
				}
				pings <- r
			}()
		}
		c.settings[1] = tt.settings
		c.writeA()
		c.reload("was read again")
		for range cap(pings) {
			if r := <-pings; r.Received != 100 {
				t.Errorf("%q: %v", tt.settings, r)
			}
		}
		if out, err := c.a.Output("sh", "-c", tt.shows); err != nil {
			t.Errorf("%q does not show: %v: %s", tt.settings, err, out)
		}
		if got := c.index(1); got != index {
			t.Errorf("%q: the link has index %d, before %d", tt.settings, got, index)
		}
	}

	// Other ends: those of no tunnel, and those of another, which gets these.
	ends := func(one, two int) {
		t.Helper()
		var text strings.Builder
		for n, pair := range []int{one, two} {
			fmt.Fprintf(&text, "[tunnel.a%[1]d]\nlocal = \"192.168.6.%[2]d\"\nremote = \"192.168.6.%[3]d\"\naddress = \"172.16.1.%[4]d\"\npeer = \"172.16.2.%[4]d\"\n",
				n+1, 10+pair, 20+pair, pair)
		}
		c.write(c.fileA, text.String())
		c.reload("was read again")
		c.passes(one, two)
	}
	ends(3, 2)
	ends(1, 3) // one takes what the other leaves
	if got := c.index(1); got != index {
		t.Errorf("after changes of the ends the link has index %d, before %d", got, index)
	}
	ends(3, 1) // they trade, which makes the links anew

	// Another number of queues makes the link anew.
	index = c.index(1)
	delete(c.settings, 2)
	c.settings[1] = "queues = 2"
	c.writeA()
	c.reload("was read again")
	c.passes(1)
	if got := c.index(1); got == index {
		t.Error("a link has another number of queues")
	}
}

// status waits for the end of a process and returns its exit status.
func status(t *testing.T, b *background) int {
	t.Helper()
	err := b.Wait(labtest.Context(t))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		t.Error(err)
	}
	return 0
}
