package tunnel_test

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// How long a ping waits: for an answer that must come, and where there may be none.
const (
	answered   = 5 * time.Second
	unanswered = 200 * time.Millisecond
)

// network is a tunnel whose outer packets pass two routers, so that no end sees
// the middle of the path:
//
//	a eth0 ──── a0 r1 mid ──── mid r2 b0 ──── eth0 b
type network struct {
	lab    *netlab.Lab
	a, b   *site
	r1, r2 *netlab.Host
	marks  int // pings of settle
}

// across returns one without a tunnel.
func across(t testing.TB) *network {
	t.Helper()
	labtest.Need(t, "tun")
	n := &network{lab: labtest.New(t)}
	n.a = newSite(addHost(t, n.lab, "a"), "192.168.6.101", "172.56.1.101")
	n.b = newSite(addHost(t, n.lab, "b"), "192.168.8.101", "172.56.2.101")
	n.r1, n.r2 = addHost(t, n.lab, "r1"), addHost(t, n.lab, "r2")
	must(t,
		n.lab.Veth(n.a.host, "eth0", n.r1, "a0"),
		n.lab.Veth(n.r1, "mid", n.r2, "mid"),
		n.lab.Veth(n.r2, "b0", n.b.host, "eth0"),
		n.a.host.AddAddr("eth0", "192.168.6.101/24"),
		n.r1.AddAddr("a0", "192.168.6.1/24"),
		n.r1.AddAddr("mid", "192.168.7.1/24"),
		n.r2.AddAddr("mid", "192.168.7.2/24"),
		n.r2.AddAddr("b0", "192.168.8.1/24"),
		n.b.host.AddAddr("eth0", "192.168.8.101/24"),
		n.a.host.AddRoute("192.168.8.0/24", "192.168.6.1"),
		n.r1.AddRoute("192.168.8.0/24", "192.168.7.2"),
		n.r2.AddRoute("192.168.6.0/24", "192.168.7.1"),
		n.b.host.AddRoute("192.168.6.0/24", "192.168.8.1"),
		n.r1.Sysctl("net.ipv4.ip_forward", "1"),
		n.r2.Sysctl("net.ipv4.ip_forward", "1"),
	)
	return n
}

// start starts both ends of the tunnel, and returns when it carries packets and has
// counted those.
func (n *network) start(t testing.TB, change func(*tunnel.Config)) {
	t.Helper()
	for _, end := range n.directions() {
		cfg := config(end[0], end[1])
		if change != nil {
			change(&cfg)
		}
		end[0].start(t, cfg)
	}
	ping(t, n.a, n.b, netlab.PingOptions{})
	n.balance(t)
}

// directions are from a to b, and back.
func (n *network) directions() [2][2]*site { return [2][2]*site{{n.a, n.b}, {n.b, n.a}} }

// shrink sets the MTU of the link in the middle.
func (n *network) shrink(t testing.TB, mtu int) {
	t.Helper()
	must(t, n.r1.SetMTU("mid", mtu), n.r2.SetMTU("mid", mtu))
}

// client adds a host behind a that reaches b through the tunnel, which must run.
func (n *network) client(t testing.TB) *site {
	t.Helper()
	client := newSite(addHost(t, n.lab, "client"), "10.1.0.2", "10.1.0.2")
	must(t,
		n.lab.Veth(client.host, "eth0", n.a.host, "lan0"),
		client.host.AddAddr("eth0", "10.1.0.2/24"),
		n.a.host.AddAddr("lan0", "10.1.0.1/24"),
		client.host.AddRoute("default", "10.1.0.1"),
		n.a.host.Sysctl("net.ipv4.ip_forward", "1"),
		n.b.host.AddRoute("10.1.0.0/24", "tun01"),
	)
	return client
}

// balance fails the test unless the tunnels have counted each packet that their
// links gave them or dropped, as passed or under one reason. What they delivered the links
// count in their own way: several packets in one are one.
func (n *network) balance(t testing.TB) {
	t.Helper()
	n.a.balance(t)
	n.b.balance(t)
}

func (s *site) balance(t testing.TB) {
	t.Helper()
	balance(t, s.host, s.tunnel)
}

// balance does nothing about a link that is not on host any more.
func balance(t testing.TB, host *netlab.Host, tunnel *tunnel.Tunnel) {
	t.Helper()
	var given, taken, counted uint64
	var now stats.Snapshot
	balanced := func() bool {
		link, err := host.Netlink().LinkByName(tunnel.Name())
		if err != nil {
			return true
		}
		kernel := link.Attrs().Statistics
		s := tunnel.State()
		given = kernel.TxPackets + kernel.TxDropped + s.FastSent
		taken = kernel.RxPackets + s.FastReceived // with goipip's own errors
		now = tunnel.Stats()
		counted = total(now.TX)
		return given == counted
	}
	defer func() {
		if t.Failed() {
			t.Logf("%s: %s gave %d packets, %d are counted; it took %d; %+v", host.Name, tunnel.Name(), given, counted, taken, now)
		}
	}()
	labtest.WaitFor(t, "all packets of "+tunnel.Name()+" to be counted", balanced)
}

// total is the number of packets that were counted.
func total(d stats.Direction) (n uint64) {
	for _, drops := range d.Drops.All() {
		n += drops
	}
	return n + d.Packets
}

// drops fails the test unless s has dropped packets on transmit for just these
// reasons.
func (s *site) drops(t testing.TB, reasons ...stats.Reason) {
	t.Helper()
	slices.Sort(reasons)
	drops := s.tunnel.Stats().TX.Drops
	var got []stats.Reason
	for r := range drops.All() {
		got = append(got, r)
	}
	if !slices.Equal(got, reasons) {
		t.Errorf("%s has dropped %v, want %v", s.host.Name, drops, reasons)
	}
}

func addHost(t testing.TB, lab *netlab.Lab, name string) *netlab.Host {
	t.Helper()
	h, err := lab.Host(name)
	must(t, err)
	return h
}

// must ends the test with the first of some errors.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func capture(t testing.TB, h *netlab.Host, dev string) *netlab.Capture {
	t.Helper()
	c, err := h.Capture(dev)
	must(t, err)
	return c
}

// inject sends packets, complete but for lengths and checksums, from h by their
// destination's route, or by dev if that is not empty.
func inject(t testing.TB, h *netlab.Host, dev string, packets ...[]byte) {
	t.Helper()
	must(t, h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if dev != "" {
			if err := unix.BindToDevice(fd, dev); err != nil {
				return os.NewSyscallError("bind to device", err)
			}
		}
		for _, p := range packets {
			err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // the link's queue is full
				return os.NewSyscallError("sendto", err)
			}
		}
		return nil
	}))
}

// settle pings, and returns when a capture has all that passed before: on a's link,
// or where its packets come by.
func (n *network) settle(t testing.TB, c *netlab.Capture) {
	t.Helper()
	n.marks++
	size := 200 + n.marks // as no other packet has
	if r := ping(t, n.a, n.b, netlab.PingOptions{Size: size, Timeout: answered}); r.Received != 1 {
		t.Fatalf("ping: %v", r)
	}
	_, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		inner := p.Data
		if inner[9] == unix.IPPROTO_IPIP {
			inner = inner[20:]
		}
		const echoReply = 0
		return len(inner) == 28+size && inner[9] == unix.IPPROTO_ICMP && inner[20] == echoReply
	})
	must(t, err)
}

// logs is what a tunnel says.
type logs struct{ labtest.Output }

// count returns the number of lines with text in them.
func (l *logs) count(text string) (n int) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// listen has s log to what is returned, from its next start.
func (s *site) listen() *logs {
	l := &logs{}
	s.log = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return l
}
