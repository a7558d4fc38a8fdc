package tunnel_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// Tunnels without a local address.

// anySource makes c one without.
func anySource(c *tunnel.Config) { c.Local = netip.Addr{} }

// secondSource is another address of a, on the same link.
var secondSource = netip.MustParseAddr("192.168.6.102")

// hears has b's tunnel be one with a at a certain address.
func (n *network) hears(t testing.TB, at netip.Addr) {
	t.Helper()
	cfg := config(n.b, n.a)
	cfg.Local, cfg.Remote = n.b.outer, at
	must(t, n.b.host.Do(func() error { return n.b.tunnel.Change(cfg) }))
}

// leavesFrom returns when pings from a are answered whose outer packets come from a certain
// address, and fails the test if one comes from another after that.
func (n *network) leavesFrom(t testing.TB, source netip.Addr, device string) {
	t.Helper()
	n.hears(t, source)
	labtest.WaitFor(t, "an answer to "+source.String(), func() bool {
		return ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered}).Received == 1
	})
	wire := capture(t, n.r1, device)
	defer wire.Close()
	const pings = 5
	if r := ping(t, n.a, n.b, netlab.PingOptions{Count: pings, Timeout: answered}); r.Received != pings {
		t.Fatalf("from %v: %v", source, r)
	}
	from := *n.a
	from.outer = source
	labtest.WaitFor(t, "the packets on "+device, func() bool { return len(from.outerPackets(wire)) >= pings })
	for _, p := range wire.Packets() {
		ip := packet.IPv4(p.Data)
		if !p.Outgoing && ip.Protocol() == unix.IPPROTO_IPIP && (ip.Source() != source.As4() || packet.Sum(ip[:20], 0) != 0xffff) {
			t.Errorf("on %s is % x, want it from %v", device, ip[:20], source)
		}
	}
}

// O11: the source is the route's, by each path, as routes and addresses change. Packets to
// any address are received.
func TestO11_SourceFollowsTheRoute(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
		t.Run(via.String(), func(t *testing.T) {
			t.Parallel()
			n := across(t)
			first := n.a.outer
			log := n.a.listen()
			n.start(t, func(c *tunnel.Config) {
				if c.Local == n.a.outer || !c.Local.IsValid() && c.Remote == n.b.outer {
					anySource(c)
					c.Transmit = via
				} else {
					c.Local = n.b.outer
				}
			})
			if via == tunnel.TransmitAuto {
				n.takes(t, tunnel.TransmitPacket)
			}
			n.leavesFrom(t, first, "a0")
			n.types(t, "ip addr add 192.168.6.102/24 dev eth0")
			n.leavesFrom(t, first, "a0") // the first address is the route's
			n.types(t, "ip route change 192.168.8.0/24 via 192.168.6.1 src 192.168.6.102")
			n.leavesFrom(t, secondSource, "a0")
			n.types(t, "ip route change 192.168.8.0/24 via 192.168.6.1")
			n.leavesFrom(t, first, "a0")

			// Without an event for the route: the kernel chooses another source for it.
			n.types(t, "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1\nip addr del 192.168.6.101/24 dev eth0")
			n.leavesFrom(t, secondSource, "a0")
			n.types(t, "ip addr add 192.168.6.101/24 dev eth0\nip addr del 192.168.6.102/24 dev eth0")
			n.leavesFrom(t, first, "a0")

			// No address, and so no route.
			n.balance(t)
			n.a.drops(t)
			n.types(t, "ip addr del 192.168.6.101/24 dev eth0")
			n.obeys(t, false)
			n.balance(t)
			n.a.drops(t, stats.NoRoute)
			n.types(t, "ip addr add 192.168.6.102/24 dev eth0\nip route add 192.168.8.0/24 via 192.168.6.1")
			n.leavesFrom(t, secondSource, "a0")
			if log.count("no route to the remote address") == 0 || log.count("local=any") == 0 {
				t.Errorf("the tunnel says:\n%s", log)
			}
		})
	}
}

// O11, O6, O10, T3: device, mark, TOS and protocol take part in the choice of the source,
// and rules about the source do not, as none is known yet.
func TestO11_RulesOfTheSource(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	const other = "ip route add 192.168.8.0/24 via 192.168.9.1 table 100\n"
	for name, c := range map[string]struct {
		change func(*tunnel.Config)
		types  string
		stays  bool
		raw    bool // in any case
	}{
		"dev":      {func(c *tunnel.Config) { c.Device = "eth1" }, "ip route add 192.168.8.0/24 via 192.168.9.1 metric 100", false, false},
		"fwmark":   {func(c *tunnel.Config) { c.Mark = 7 }, other + "ip rule add pref 100 fwmark 7 lookup 100", false, false},
		"tos":      {func(c *tunnel.Config) { c.TOS = 0x10 }, other + "ip rule add pref 100 tos 0x10 lookup 100", false, false},
		"protocol": {func(*tunnel.Config) {}, other + "ip rule add pref 100 ipproto 4 lookup 100", false, true},
		"source":   {func(*tunnel.Config) {}, other + "ip rule add pref 100 from 192.168.6.101 lookup 100", true, false},
	} {
		for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
			t.Run(name+", "+via.String(), func(t *testing.T) {
				t.Parallel()
				n := across(t)
				n.secondUplink(t)
				n.types(t, c.types)
				cfg := config(n.a, n.b)
				anySource(&cfg)
				c.change(&cfg)
				cfg.Transmit = via
				source, device := secondUplink, "a1"
				if c.stays {
					source, device = n.a.outer, "a0"
				}
				n.a.start(t, cfg)
				n.b.start(t, config(n.b, n.a))
				n.leavesFrom(t, source, device)
				if via == tunnel.TransmitAuto && !c.raw {
					n.takes(t, tunnel.TransmitPacket)
				} else {
					n.takes(t, tunnel.TransmitRaw)
				}

				if c.stays {
					return // the kernel takes note of a path's MTU by the source of the packet
				}
				p := newProber(t, n.a, n.b)
				n.shrink(t, 1400)
				p.learns(t, 1480, 1380)
				p.arrives(t, 1380)
				n.balance(t)
				n.a.drops(t, stats.TooBig)
			})
		}
	}
}

// O11, R2, G1: packets from the remote address are received at any address that the kernel
// takes for this host's: those of links, of local routes, and everybody's.
func TestO11_G1_ReceivesAtAnyAddress(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	n := across(t)
	n.types(t, "ip addr add 192.168.6.102/24 dev eth0\nip addr add 10.77.0.1/32 dev lo\nip route add local 10.78.0.0/16 dev lo")
	cfg := config(n.a, n.b)
	anySource(&cfg)
	n.a.start(t, cfg)
	far := newSite(n.b.host, n.b.outer.String(), "10.99.0.1")
	at := func(a string) packet.IPv4 {
		return outerOf(far, newSite(nil, a, "0.0.0.0"), echoReply(far.inner, n.a.inner, 100))
	}
	n.types(t, "ip route add 10.99.0.0/16 dev tun01")
	gateway := newSite(n.r1, "192.168.6.1", "10.99.0.2")
	send := func(p packet.IPv4) { inject(t, gateway.host, "a0", p) }
	for i, a := range []string{"192.168.6.101", "192.168.6.102", "10.77.0.1", "10.78.9.9", "192.168.6.255", "255.255.255.255", "224.0.0.1"} {
		if strings.HasPrefix(a, "10.") {
			must(t, n.r1.AddRoute(a+"/32", "192.168.6.101"))
		}
		before := n.a.tunnel.Stats().RX.Packets
		send(at(a))
		labtest.WaitFor(t, "the packet to "+a, func() bool { return n.a.tunnel.Stats().RX.Packets > before })
		if now := n.a.tunnel.Stats().RX; now.Drops != (stats.Drops{}) {
			t.Errorf("packet %d, to %s: %+v", i, a, now)
		}
	}
	// From others nothing comes so far as to be counted.
	stranger := outerOf(gateway, n.a, echoReply(far.inner, n.a.inner, 100))
	before := total(n.a.tunnel.Stats().RX)
	send(stranger)
	send(at("192.168.6.101"))
	labtest.WaitFor(t, "the packet behind it", func() bool { return total(n.a.tunnel.Stats().RX) > before })
	if now := total(n.a.tunnel.Stats().RX); now != before+1 {
		t.Errorf("%d packets are counted, want one", now-before)
	}
}

// takesAll has a socket on h take all ipip packets.
func takesAll(t *testing.T, h *netlab.Host) {
	t.Helper()
	must(t, h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, packet.ProtoIPIP)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return os.NewSyscallError("socket", err)
	}))
}

// R2, E, O7: of two tunnels to the same remote address, the one with the packet's local
// address comes first; and so with ICMP errors.
func TestO11_R2_E_ExactFirst(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	n := across(t)
	n.types(t, "ip addr add 192.168.6.102/24 dev eth0")
	takesAll(t, n.b.host) // or else its kernel answers with ICMP errors too
	var host *tunnel.Host
	must(t, n.a.host.Do(func() (err error) {
		host, err = tunnel.OpenHost(1, quiet())
		return err
	}))
	t.Cleanup(host.Close)
	open := func(name string, local netip.Addr) (opened *tunnel.Tunnel, err error) {
		cfg := config(n.a, n.b)
		cfg.Name, cfg.Local, cfg.Address, cfg.Peer = name, local, netip.Prefix{}, netip.Addr{}
		err = n.a.host.Do(func() (err error) {
			opened, err = host.Open(cfg, quiet())
			return err
		})
		return opened, err
	}
	anyone, err := open("any", netip.Addr{})
	must(t, err)
	t.Cleanup(anyone.Close)
	exact, err := open("exact", n.a.outer)
	must(t, err)
	t.Cleanup(func() { exact.Close() })
	if _, err := open("again", netip.Addr{}); err == nil || !strings.Contains(err.Error(), "tunnel from any to 192.168.8.101: file exists") {
		t.Errorf("a second one from any: %v", err)
	}

	received := func(w *tunnel.Tunnel) uint64 { return w.Stats().RX.Packets }
	checks := func(what string, to netip.Addr, want, not *tunnel.Tunnel) {
		t.Helper()
		before := received(want)
		var others uint64
		if not != nil {
			others = received(not)
		}
		far := newSite(nil, n.b.outer.String(), "10.99.0.1")
		for range 5 {
			inject(t, n.b.host, "", outerOf(far, newSite(nil, to.String(), "10.98.0.1"), echoReply(far.inner, netip.MustParseAddr("10.98.0.1"), 100)))
		}
		labtest.WaitFor(t, what, func() bool { return received(want) == before+5 })
		if not != nil && received(not) != others {
			t.Errorf("%s: the other tunnel has them too", what)
		}
	}
	must(t, n.r1.AddRoute("192.168.6.102/32", "192.168.6.101"))
	checks("packets to the first address", n.a.outer, exact, anyone)
	checks("packets to the second address", secondSource, anyone, exact)

	// The next sender is told of an error (T8).
	sends := func(from *tunnel.Tunnel, link *netlab.Capture) (told int) {
		t.Helper()
		before := from.Stats().TX.Packets
		inject(t, n.a.host, from.Name(), echoReply(netip.MustParseAddr("10.98.0.1"), netip.MustParseAddr("10.99.0.1"), 100))
		labtest.WaitFor(t, "a packet to be sent", func() bool { return from.Stats().TX.Packets == before+1 })
		return len(icmpErrors(link))
	}
	for _, c := range []struct {
		source  netip.Addr
		of, not *tunnel.Tunnel
	}{{secondSource, anyone, exact}, {n.a.outer, exact, anyone}} {
		ofLink, notLink := capture(t, n.a.host, c.of.Name()), capture(t, n.a.host, c.not.Name())
		before := c.of.ICMPErrors()
		from := *n.a
		from.outer = c.source
		from.sendICMPErrors(t, n.r1, n.b, 1, 3, 1, 0)
		labtest.WaitFor(t, "an ICMP error", func() bool { return c.of.ICMPErrors() > before })
		if told := sends(c.not, notLink); told != 0 {
			t.Errorf("an error about a packet from %v: %s is told", c.source, c.not.Name())
		}
		labtest.WaitFor(t, "the sender to be told", func() bool { return sends(c.of, ofLink) == 1 })
	}

	exact.Close()
	checks("packets to the first address, which no tunnel has any more", n.a.outer, anyone, nil)
	exact, err = open("exact", n.a.outer)
	must(t, err)
	checks("packets to the first address, which one has again", n.a.outer, exact, anyone)
	checks("packets to the second address", secondSource, anyone, exact)
	anyone.Close()
	checks("packets to the first address, of a tunnel alone", n.a.outer, exact, nil)
	if got := exact.Stats().RX.Drops; got != (stats.Drops{}) {
		t.Errorf("dropped: %+v", got)
	}
}

// O11: a tunnel gets and loses a local address while packets pass, of which none is lost
// either way, nor one of another tunnel's.
func TestO11_Change(t *testing.T) {
	t.Parallel()
	n := across(t)
	settings := func(c *tunnel.Config) { // each packet counts as one
		c.Transmit, c.NoOffload = tunnel.TransmitRaw, true
	}
	n.start(t, settings)
	s, back := startStream(t, n.a, n.b), startStream(t, n.b, n.a)
	for i := range 20 {
		cfg := config(n.a, n.b)
		settings(&cfg)
		if i%2 == 0 {
			cfg.Local = netip.Addr{}
		} else {
			cfg.Local = n.a.outer
		}
		must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(cfg) }))
		link, err := n.a.host.Netlink().LinkByName("tun01")
		must(t, err)
		if want := fmt.Sprintf("ip/ip remote 192.168.8.101 local %s ttl inherit", cfg.LocalText()); link.Attrs().Alias != want {
			t.Errorf("the alias is %q, want %q", link.Attrs().Alias, want)
		}
		s.carries(t, streamRate/64)
		back.carries(t, streamRate/64)
	}
	s.finish(t, time.Second)
	back.finish(t, time.Second)
	n.balance(t)
	n.a.drops(t)
	for _, way := range n.directions() {
		labtest.WaitFor(t, "all packets to arrive", func() bool {
			sent, received := way[0].tunnel.Stats().TX.Packets, way[1].tunnel.Stats().RX.Packets
			if way[1] == n.a { // it changes sockets, so a few come twice: see rawsock's Receiver.Add
				return sent <= received
			}
			return sent == received
		})
		if got := way[1].tunnel.Stats().RX.Drops; got != (stats.Drops{}) {
			t.Errorf("dropped on receive: %+v", got)
		}
	}
}
