package tunnel_test

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// What hostile probing found, each by its number. A tunnel that learns of something by
// an event learns of it long before its poll, once a second, would tell.
const (
	soon   = 250 * time.Millisecond
	rounds = 7
)

// median returns that of what a step takes, in a few rounds.
func median(t testing.TB, step func() time.Duration) time.Duration {
	t.Helper()
	var took []time.Duration
	for range rounds {
		took = append(took, step())
	}
	slices.Sort(took)
	t.Logf("took %v", took)
	return took[len(took)/2]
}

// says returns how long it takes from now until the log has one more line with a text.
func (l *logs) says(t testing.TB, text string, after func()) time.Duration {
	t.Helper()
	before := l.count(text)
	after()
	start := time.Now()
	labtest.WaitFor(t, "the tunnel to say "+text, func() bool { return l.count(text) > before })
	return time.Since(start)
}

// A rule that chooses by protocol holds for the tunnel's packets, with any via.
func TestHazard4_RuleByProtocol(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "ip")
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
		n := across(t)
		log := n.a.listen()
		n.start(t, func(c *tunnel.Config) { c.Transmit = via })
		if via == tunnel.TransmitAuto {
			n.takes(t, tunnel.TransmitPacket)
		}
		n.types(t, "ip rule add pref 100 ipproto 4 prohibit")
		n.obeys(t, false)
		n.balance(t)
		n.a.drops(t, stats.Filtered)
		n.types(t, "ip rule del pref 100")
		n.obeys(t, true)
		if via == tunnel.TransmitAuto {
			n.takes(t, tunnel.TransmitPacket)
		}
		if log.count("WARN") == 0 {
			t.Errorf("via %d: the tunnel does not say that nothing passes:\n%s", via, log)
		}
	}
}

// The path is as long as the route for ipip is, and a sender hears of that (T7).
func TestHazard4_RuleByProtocolAndMTU(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "ip")
	for name, route := range map[string]string{
		"of the device": "ip link set eth1 mtu 1300",
		"of the route":  "ip route change 192.168.8.0/24 via 192.168.9.1 table 100 mtu 1300",
	} {
		for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				n := across(t)
				n.secondUplink(t)
				n.start(t, func(c *tunnel.Config) { c.Transmit = via })
				n.types(t, "ip route add 192.168.8.0/24 via 192.168.9.1 table 100\nip rule add pref 100 ipproto 4 lookup 100\n"+route)
				p := newProber(t, n.a, n.b)
				p.learns(t, 1480, 1280)
				p.arrives(t, 1280)
				n.balance(t)
				n.a.drops(t, stats.TooBig)
			})
		}
	}
}

// Whatever the tunnel thinks of the path, a sender of a packet with DF that the kernel
// refuses hears of it: here the tunnel knows nothing of the change yet. With the fast path
// the kernel loses what is longer than the device until it does.
func TestHazard4_EveryRefusalIsAnswered(t *testing.T) {
	needsEngine(t)
	t.Parallel()
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitRaw, tunnel.TransmitPacket} {
		n := across(t)
		n.start(t, func(c *tunnel.Config) { c.Transmit = via })
		n.takes(t, via)
		tun01 := capture(t, n.a.host, "tun01")
		var packets [][]byte
		for i := range 40 {
			p := n.tooBig()
			p.SetSource([4]byte{10, 99, 1, byte(i)})
			packets = append(packets, p)
		}
		resume := n.a.tunnel.PauseUnderlay()
		must(t, n.a.host.SetMTU("eth0", 1400))
		inject(t, n.a.host, "tun01", packets...)
		labtest.WaitFor(t, "every sender to hear", func() bool { return len(icmpErrors(tun01)) >= len(packets) })
		resume()
		for _, e := range icmpErrors(tun01) {
			if e.typ != 3 || e.code != 4 || e.mtu != 1380 {
				t.Errorf("via %d: a sender hears %v with mtu %d, want 3/4 with 1380", via, e, e.mtu)
			}
		}
		must(t, n.a.host.SetMTU("eth0", 1500))
		n.balance(t)
		n.a.drops(t, stats.TooBig)
	}
}

// A new chain or IPsec policy ends the packet socket as it comes, not a second later.
func TestHazard5_FiltersAtOnce(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	labtest.Need(t, "nft", "ip")
	for name, c := range map[string]struct{ begin, end string }{
		"nftables": {chain("ip", "filter", "output"), "nft flush ruleset"},
		"IPsec":    {"ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir out", "ip xfrm policy flush"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			log := n.a.listen()
			n.start(t, nil)
			n.takes(t, tunnel.TransmitPacket)
			if took := median(t, func() time.Duration {
				raw := log.says(t, "by raw socket", func() { n.types(t, c.begin) })
				log.says(t, "by packet socket", func() { n.types(t, c.end) })
				return raw
			}); took > soon {
				t.Errorf("the packet socket ends %v after the command", took)
			}
		})
	}
}

// Legacy iptables are seen in the tunnel's namespace, whatever became of the thread
// that opened the tunnel, and in no other.
func TestHazard6_LegacyIptables(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "iptables-legacy")
	n := across(t)
	n.start(t, nil)
	n.takes(t, tunnel.TransmitPacket)
	// The other end's are another host's business.
	if _, err := n.b.host.Output("iptables-legacy", "-A", "INPUT", "-s", "203.0.113.1", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	n.takes(t, tunnel.TransmitPacket)
	n.types(t, "iptables-legacy -A OUTPUT -p 4 -j DROP")
	n.obeys(t, false)
	n.balance(t)
	n.a.drops(t, stats.Filtered)
}

// A device that comes again is the tunnel's again, and one with another name still is
// (O6).
func TestHazard7_Device(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
		t.Run([]string{"auto", "raw"}[via], func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.secondUplink(t)
			route := "ip route add 192.168.8.0/24 via 192.168.9.1 dev eth1 metric 100"
			n.types(t, route)
			n.a.outer = secondUplink
			cfg := config(n.a, n.b)
			cfg.Device, cfg.Transmit = "eth1", via
			log := n.a.listen()
			n.a.start(t, cfg)
			n.b.start(t, config(n.b, n.a))
			n.obeys(t, true)

			// Under another name, with another MTU.
			n.types(t, "ip link set eth1 down\nip link set eth1 name wan\nip link set wan up\n"+strings.Replace(route, "eth1", "wan", 1))
			n.obeys(t, true)
			must(t, n.a.host.SetMTU("wan", 1300))
			p := newProber(t, n.a, n.b)
			p.learns(t, 1480, 1280)
			p.arrives(t, 1280)
			n.balance(t)

			// Gone, and back as another link.
			n.types(t, "ip link del wan")
			before := n.a.tunnel.Stats().TX.Drops[stats.NoRoute]
			labtest.WaitFor(t, "packets without a route", func() bool {
				ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered})
				return n.a.tunnel.Stats().TX.Drops[stats.NoRoute] > before
			})
			must(t,
				n.lab.Veth(n.a.host, "eth1", n.r1, "a1"),
				n.a.host.AddAddr("eth1", "192.168.9.101/24"),
				n.r1.AddAddr("a1", "192.168.9.1/24"))
			n.types(t, route)
			n.obeys(t, true)
			if via == tunnel.TransmitAuto {
				n.takes(t, tunnel.TransmitPacket)
			}
			if got := log.count("is gone"); got != 1 {
				t.Errorf("the tunnel says %d times that its device is gone:\n%s", got, log)
			}
		})
	}
}

// A route by a nexthop object follows the object.
func TestHazard8_NextHopObjects(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "ip")
	n := across(t)
	n.secondUplink(t)
	must(t, n.a.host.Sysctl("net.ipv4.nexthop_compat_mode", "0"))
	n.deleteRoute(t, "192.168.8.0/24")
	n.types(t, "ip nexthop add id 1 via 192.168.6.1 dev eth0\nip route add 192.168.8.0/24 nhid 1")
	log := n.a.listen()
	n.start(t, nil)
	n.types(t, "ping -c 1 -W 1 192.168.9.1")
	n.takes(t, tunnel.TransmitPacket)
	gateways := []string{"192.168.9.1 dev eth1", "192.168.6.1 dev eth0"}
	turn := 0
	if took := median(t, func() time.Duration {
		turn++
		return log.says(t, "by packet socket", func() { n.types(t, "ip nexthop replace id 1 via "+gateways[(turn+1)%2]) })
	}); took > soon {
		t.Errorf("packets follow the nexthop %v after the command", took)
	}
}

// With --icmp rfc2003 an error is relayed about what goes through the tunnel, and about
// nothing else, whoever forges it.
func TestHazard9_ForgedQuote(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.RelayICMP = true })
	client := n.client(t)
	victim := capture(t, client.host, "eth0")
	for _, s := range []*netlab.Host{n.a.host, client.host} {
		must(t, s.Sysctl("net.ipv4.conf.all.rp_filter", "0"))
	}
	elsewhere := echoReply(client.inner, netip.MustParseAddr("192.168.6.1"), 100) // of a flow past the tunnel
	through := echoReply(client.inner, n.b.inner, 100)
	for _, p := range []packet.IPv4{elsewhere, through} {
		p.SetDF(true)
		p.UpdateChecksum()
	}
	for _, e := range []routerError{{3, 4, 1200, nil}, {3, 1, 0, nil}, {11, 0, 0, nil}} {
		for _, quoted := range []packet.IPv4{elsewhere, through} {
			e.inner = quoted[:28]
			n.a.sendRouterErrors(t, n.r1, n.b, 1, e)
			n.softErrorWaits(t)
		}
	}
	labtest.WaitFor(t, "the errors about the tunnel's packets", func() bool { return len(icmpErrors(victim)) >= 3 })
	for _, e := range icmpErrors(victim) {
		if e.src != n.b.inner.String() {
			t.Errorf("the client hears %v from %s, about % x", e, e.src, e.quote)
		}
	}
}

// In another namespace the link belongs to a host of other addresses (G2).
func TestHazard10_MovedLink(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	must(t, n.a.host.AddAddr("lo", "10.77.0.1/32"))
	container := addHost(t, n.lab, "container")
	n.moveTo(t, container)
	must(t, container.AddRoute("10.77.0.0/24", "tun01"))
	tun01 := capture(t, container, "tun01")
	inside := newSite(container, n.a.outer.String(), n.a.inner.String())
	if r := ping(t, inside, n.b, netlab.PingOptions{Timeout: answered}); r.Received != 1 {
		t.Fatalf("ping from the container: %v", r)
	}
	p := echoReply(netip.MustParseAddr("10.77.0.1"), n.a.inner, 333)
	inject(t, n.b.host, "tun01", p)
	if _, err := tun01.Wait(labtest.Context(t), func(p netlab.Captured) bool { return len(p.Data) == 333 }); err != nil {
		t.Errorf("a packet from an address of the host outside: %v, %+v", err, n.a.tunnel.Stats().RX)
	}
}

// moveTo moves a's link into another namespace, where it is up with a's address.
func (n *network) moveTo(t testing.TB, container *netlab.Host) {
	t.Helper()
	tun01, err := n.a.host.Netlink().LinkByName("tun01")
	must(t, err, container.Do(func() error {
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		return n.a.host.Netlink().LinkSetNsFd(tun01, int(ns.Fd()))
	}))
	must(t, container.SetUp("tun01"), container.AddPeer("tun01", n.a.inner.String(), n.b.inner.String()))
}

// The loss of the route is worth a line in the log, and so is its return.
func TestHazard15_RouteLostAndFound(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	n := across(t)
	log := n.a.listen()
	n.start(t, nil)
	for turn := range 2 {
		n.deleteRoute(t, "192.168.8.0/24")
		labtest.WaitFor(t, "a line about the route's loss", func() bool { return log.count("no route to the remote address") == turn+1 })
		must(t, n.a.host.AddRoute("192.168.8.0/24", "192.168.6.1"))
		labtest.WaitFor(t, "a line about its return", func() bool { return log.count("packets can leave again") == turn+1 })
	}
	addr, err := netlink.ParseAddr("192.168.6.101/24")
	must(t, err)
	eth0, err := n.a.host.Netlink().LinkByName("eth0")
	must(t, err, n.a.host.Netlink().AddrDel(eth0, addr))
	labtest.WaitFor(t, "a line about the address", func() bool { return log.count("the local address is not on this host") == 1 })
	n.obeys(t, false)
	n.balance(t)
	if log.count("tunnel=tun01") < 5 {
		t.Errorf("lines do not tell the tunnel:\n%s", log)
	}
}

// A refusal does not wait for a look at the host, however long that takes.
func TestHazard18_NoWaitForTheUnderlay(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.shorten(t)
	p := newProber(t, n.a, n.b)
	resume := n.a.tunnel.PauseUnderlay()
	defer resume()
	if sent := p.learns(t, 1480, 1380); sent > 1 {
		t.Logf("%d packets", sent)
	}
	p.arrives(t, 1380)
}

// The next hop is logged as link-layer addresses are written.
func TestHazard20_NextHopInTheLog(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.setAddr(t, "a0", "02:00:00:00:00:07")
	log := n.a.listen()
	n.start(t, nil)
	n.takes(t, tunnel.TransmitPacket)
	if log.count("next_hop=02:00:00:00:00:07") == 0 {
		t.Errorf("the tunnel says:\n%s", log)
	}
}

// A mark takes part in the choice of the route, with any via, and packets bear it.
func TestO10_Hazard22_Mark(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "ip", "nft")
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
		n := across(t)
		n.secondUplink(t)
		must(t, n.a.host.SetMTU("eth1", 1400))
		n.types(t, "ip route add 192.168.8.0/24 via 192.168.9.1 table 100\nip rule add pref 100 fwmark 7 lookup 100")
		wire := capture(t, n.r1, "a1")
		n.start(t, func(c *tunnel.Config) { c.Mark, c.Transmit = 7, via })
		n.waitMTU(t, 1380)
		labtest.WaitFor(t, "packets by the marked route", func() bool {
			ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered})
			return len(n.a.outerPackets(wire)) > 0
		})
		if via == tunnel.TransmitAuto {
			n.takes(t, tunnel.TransmitPacket)
		} else {
			n.types(t, chain("ip", "filter", "output")+"\nnft add rule ip t c ip protocol 4 meta mark != 7 drop")
			n.obeys(t, true)
		}
		n.balance(t)
		n.a.drops(t)
	}
}
