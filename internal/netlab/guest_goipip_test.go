package netlab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// guestLab is a host and a guest on one cable, with a tunnel to make between them. The guest has a kernel of its own, another
// version than the machine's, without ipip until a test loads it.
type guestLab struct {
	guest *netlab.Guest
	host  *netlab.Host
	bin   string // of a goipip that runs in the guest: the race detector's shadow memory finds no address space there
	end01 end    // on the host
	end02 end    // in the guest; its host is nil
	path         // from the host to the guest, which is no netlab.Host
}

func newGuestLab(t *testing.T) *guestLab {
	t.Helper()
	labtest.Need(t, "root", "tun", "uml", "socat", "ip", "ping")
	l := &guestLab{bin: labtest.Build(t, "goipip/cmd/goipip")}
	l.guest, l.host = newGuest(t, 1)
	l.end01 = end{l.host, "tun01", "192.168.6.101", "192.168.6.102", "172.56.1.101", "172.56.2.101"}
	l.end02 = end{nil, "tun02", "192.168.6.102", "192.168.6.101", "172.56.2.101", "172.56.1.101"}
	l.path = path{a: l.host, addrA: netip.MustParseAddr(l.end01.inner), addrB: netip.MustParseAddr(l.end02.inner)}
	if err := errors.Join(l.guest.LoadModules("tun"), l.host.AddAddr("tap0", l.end01.local+"/24")); err != nil {
		t.Fatal(err)
	}
	runIn(t, l.guest, "ip addr add "+l.end02.local+"/24 dev vec0")
	keepAwake(t, l.host, l.end02.local)
	return l
}

// keepAwake sends packets to a guest's card, which now and then leaves one until the next one comes. It does without a raw
// socket, since those that goipip leaves are counted.
func keepAwake(t *testing.T, host *netlab.Host, addr string) {
	t.Helper()
	if err := host.Sysctl("net.ipv4.ping_group_range", "0 2147483647"); err != nil {
		t.Fatal(err)
	}
	start(t, host, exec.Command("ping", "-q", "-i", "0.05", addr))
}

// startInGuest starts goipip in the guest, and returns when its link is up. What it logs is in /run/goipip.log.
func (l *guestLab) startInGuest(t *testing.T, options ...string) {
	t.Helper()
	e := l.end02
	runIn(t, l.guest, fmt.Sprintf(`rm -f /run/goipip.*
		(%s -name %s -local %s -remote %s -address %s -peer %s %s; echo $? >/run/goipip.status) >/run/goipip.log 2>&1 &`,
		l.bin, e.dev, e.local, e.remote, e.inner, e.peer, strings.Join(options, " ")))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("goipip in the guest said:\n%s", l.log(t))
		}
	})
	labtest.WaitFor(t, e.dev+" in the guest to be up", func() bool {
		if status := runIn(t, l.guest, "cat /run/goipip.status 2>/dev/null || true"); status != "" {
			t.Fatalf("goipip in the guest ended early, with status %s", status)
		}
		out, err := l.guest.Run("ip -o addr show up dev " + e.dev)
		return err == nil && strings.Contains(out, e.inner)
	})
}

func (l *guestLab) log(t *testing.T) string {
	t.Helper()
	return runIn(t, l.guest, "cat /run/goipip.log")
}

// exitsInGuest deletes the link in the guest, and waits for goipip's end, which is to be in peace.
func (l *guestLab) exitsInGuest(t *testing.T) {
	t.Helper()
	runIn(t, l.guest, "ip link delete "+l.end02.dev)
	var status string
	labtest.WaitFor(t, "the end of goipip in the guest", func() bool {
		status = runIn(t, l.guest, "cat /run/goipip.status 2>/dev/null || true")
		return status != ""
	})
	if status != "0\n" {
		t.Errorf("goipip in the guest ended with status %s", status)
	}
	labtest.WaitFor(t, "the raw sockets to be gone from the guest", func() bool {
		return runIn(t, l.guest, "tail -n +2 /proc/net/raw") == "" // after the title
	})
}

// TestGuest_RunsGoipip has goipip on another kernel than this machine's.
func TestGuest_RunsGoipip(t *testing.T) {
	t.Parallel()
	l := newGuestLab(t)
	carries := func(t *testing.T, options string) {
		l.startInGuest(t, options)
		l.ping(t, netlab.PingOptions{Count: 3, Reply: l.untouched(t)})
		l.ping(t, netlab.PingOptions{Size: maxEcho, DF: true})
		l.ping(t, netlab.PingOptions{Size: fragmented})
		for _, options := range []string{"", fmt.Sprintf("-M do -s %d", maxEcho), fmt.Sprintf("-s %d", fragmented)} {
			pingsFrom(t, "the guest", func(line string) string { return runIn(t, l.guest, line) }, options, l.addrA.String())
		}
		if _, err := l.guest.Echo(labtest.Context(t), l.host, netip.AddrPortFrom(l.addrA, 0), guestTransferLen); err != nil {
			t.Error(err)
		}
		if log := l.log(t); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("goipip in the guest complains:\n%s", log)
		}
		l.exitsInGuest(t)
	}
	for _, options := range guestOptionSets {
		t.Run("goipip at the other end, options "+options, func(t *testing.T) {
			tun01 := l.end01.start(t)
			carries(t, options)
			tun01.hasNoComplaint(t)
			tun01.exits(t, l.end01, func() error { return l.host.DeleteLink("tun01") })
		})
	}
	// It lasts as long as the card.
	t.Run("kernel at the other end", func(t *testing.T) {
		labtest.Need(t, "bpf")
		if err := l.host.AttachIPIP(netlab.KernelIPIP{
			Dev:   "tap0",
			Local: netip.MustParseAddr(l.end01.local), Remote: netip.MustParseAddr(l.end01.remote),
			InnerLocal: l.addrA, InnerRemote: l.addrB,
		}); err != nil {
			t.Fatal(err)
		}
		carries(t, "")
	})
}

// conflictWarning is what goipip says of a kernel that answers too.
const conflictWarning = "the kernel answers every ipip packet too"

// warnsOnce waits for the warning of the conflict, and fails the test unless it is one, with the cure.
func (l *guestLab) warnsOnce(t *testing.T) {
	t.Helper()
	var log string
	labtest.WaitFor(t, "a warning of tunnel4", func() bool {
		log = l.log(t)
		return strings.Contains(log, conflictWarning)
	})
	mentions(t, "the warning", log, "level=WARN", "rmmod ipip sit tunnel4", "tunnel4, for ipip")
	l.warned(t, 1)
}

func (l *guestLab) warned(t *testing.T, times int) {
	t.Helper()
	if log := l.log(t); strings.Count(log, conflictWarning) != times {
		t.Errorf("goipip in the guest does not warn %d times:\n%s", times, log)
	}
}

// portUnreachables pings through the tunnel, and counts the guest's ICMP 3/3 on the cable.
func (l *guestLab) portUnreachables(t *testing.T) int {
	t.Helper()
	c := startCapture(t, l.host, "tap0")
	defer c.Close()
	// Their senders may be told of an error, and still be answered.
	result, err := l.host.Ping(labtest.Context(t), l.addrB, netlab.PingOptions{Count: 3, Timeout: answerTime})
	t.Logf("pings through the tunnel: %v, %v", result, err)

	// What the guest's kernel answers leaves before what its goipip does, and both before the answer to this.
	const markerLen = 777
	marker := path{a: l.host, addrB: netip.MustParseAddr(l.end02.local)}
	marker.ping(t, netlab.PingOptions{Size: markerLen})
	if _, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		return !p.Outgoing && len(p.Data) == packet.IPv4HdrLen+8+markerLen
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range c.Packets() {
		h, err := ipv4.ParseHeader(p.Data)
		if err != nil || p.Outgoing || h.Protocol != unix.IPPROTO_ICMP {
			continue
		}
		if icmp := p.Data[h.Len:]; len(icmp) > 1 && icmp[0] == 3 && icmp[1] == 3 {
			n++
		}
	}
	return n
}

// removeModules unloads modules, without rmmod(8).
func (l *guestLab) removeModules(t *testing.T, names ...string) {
	t.Helper()
	runIn(t, l.guest, fmt.Sprintf(`perl -e 'for (@ARGV) { syscall(%d, $_, %d) == 0 or die "$_: $!\n" }' %s`,
		unix.SYS_DELETE_MODULE, unix.O_NONBLOCK, strings.Join(names, " ")))
}

// TestCompany_Tunnel4InTheGuest has goipip and the modules that it replaces on one host.
func TestCompany_Tunnel4InTheGuest(t *testing.T) {
	t.Parallel()
	l := newGuestLab(t)
	l.end01.start(t)

	l.startInGuest(t)
	if n := l.portUnreachables(t); n != 0 {
		t.Errorf("%d ICMP 3/3 without a module", n)
	}
	l.warned(t, 0)

	// tunl0, which it makes, is an event.
	if err := l.guest.LoadModules("ipip"); err != nil {
		t.Fatal(err)
	}
	l.warnsOnce(t)
	if n := l.portUnreachables(t); n == 0 {
		t.Error("no ICMP 3/3 with the module: the warning is wrong")
	}
	l.exitsInGuest(t)

	l.startInGuest(t)
	l.warnsOnce(t)

	// The cure, in its words.
	l.removeModules(t, "ipip", "tunnel4")
	if n := l.portUnreachables(t); n != 0 {
		t.Errorf("%d ICMP 3/3 after the cure", n)
	}
	labtest.WaitFor(t, "goipip to see the cure", func() bool { return strings.Contains(l.log(t), "nothing else here answers") })
	l.exitsInGuest(t)
}

// TestBadNetwork_Netem has a guest as the router between two hosts, that loses, doubles, changes and reorders packets.
func TestBadNetwork_Netem(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "uml", "ip", "ping")
	if _, err := exec.LookPath("tc"); err != nil {
		t.Skipf("needs tc: %v", err)
	}
	lab := labtest.New(t)
	ns01, ns02 := newHost(t, lab, "ns01"), newHost(t, lab, "ns02")
	router, err := ns01.StartGuest(netlab.GuestConfig{Cards: []string{"veth01", "veth02"}})
	if err != nil {
		t.Fatal(err)
	}
	moveLink(t, ns01, "veth02", ns02)
	if err := errors.Join(
		ns01.AddAddr("veth01", "192.168.6.101/24"),
		ns02.SetUp("veth02"),
		ns02.AddAddr("veth02", "192.168.8.101/24"),
		ns01.AddRoute("192.168.8.0/24", "192.168.6.1"),
		ns02.AddRoute("192.168.6.0/24", "192.168.8.1"),
		router.LoadModules("sch_netem"),
	); err != nil {
		t.Fatal(err)
	}
	const delay = 50 * time.Millisecond
	runIn(t, router, `set -e
		ip addr add 192.168.6.1/24 dev vec0
		ip addr add 192.168.8.1/24 dev vec1
		echo 1 >/proc/sys/net/ipv4/ip_forward
		for dev in vec0 vec1; do
			tc qdisc add dev $dev root netem loss 1% duplicate 1% corrupt 0.5% reorder 5% delay `+delay.String()+`
		done`)
	keepAwake(t, ns01, "192.168.6.1")
	keepAwake(t, ns02, "192.168.8.1")

	end01 := end{ns01, "tun01", "192.168.6.101", "192.168.8.101", "172.56.1.101", "172.56.2.101"}
	end02 := end{ns02, "tun02", "192.168.8.101", "192.168.6.101", "172.56.2.101", "172.56.1.101"}
	p := path{ns01, ns02, netip.MustParseAddr(end01.inner), netip.MustParseAddr(end02.inner)}
	outer := path{ns01, ns02, netip.MustParseAddr(end01.local), netip.MustParseAddr(end02.local)}
	for _, options := range optionSets[:2] {
		t.Run("options "+options, func(t *testing.T) {
			tun01, tun02 := end01.start(t, strings.Fields(options)...), end02.start(t, strings.Fields(options)...)
			p.revives(t)
			for _, p := range []path{p, p.reverse()} {
				result, err := netlab.Transfer(labtest.Context(t), p.a, p.b, netip.AddrPortFrom(p.addrB, 0), 1<<20)
				if err != nil {
					t.Error(err)
				}
				t.Logf("%d bytes from %s in %v", result.Bytes, p.a.Name, result.Duration)
				p.revives(t)
			}
			tun01.exits(t, end01, func() error { return ns01.DeleteLink("tun01") })
			tun02.exits(t, end02, func() error { return tun02.Signal(unix.SIGTERM) })
			// Packets that are late meet no socket any more. What the kernel answers, ICMP 3/2,
			// must not reach the next tunnel, for which it would be a soft error (T8).
			for _, p := range []path{outer, outer.reverse()} {
				p.settles(t, 2*delay)
			}
		})
	}
	// The network was bad, or this would prove less than it says.
	for _, dev := range []string{"vec0", "vec1"} {
		stats := runIn(t, router, "tc -s qdisc show dev "+dev)
		if mentions(t, "the router's "+dev, stats, "qdisc netem"); strings.Contains(stats, "(dropped 0,") {
			t.Errorf("the router drops nothing:\n%s", stats)
		}
	}
}

// moveLink moves a device to another host, where it is down and has no address.
func moveLink(t *testing.T, from *netlab.Host, dev string, to *netlab.Host) {
	t.Helper()
	if err := to.Do(func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		link, err := from.Netlink().LinkByName(dev)
		if err != nil {
			return err
		}
		return from.Netlink().LinkSetNsFd(link, int(ns))
	}); err != nil {
		t.Fatal(err)
	}
}
