package tunnel_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// takes returns when a's packets leave by a path, by what the kernel says: its IP layer
// sees those that packet sockets send once, within the tunnel, and others twice. There
// may be other packets in the tunnel meanwhile, if they are many against those of the
// moment when one is counted here and not there yet.
func (n *network) takes(t testing.TB, via tunnel.TransmitPath) {
	t.Helper()
	const count, length = 4, 428
	labtest.WaitFor(t, fmt.Sprint("packets to leave by path ", via), func() bool {
		octets, inner := n.a.outOctets(t), n.a.tunnel.Stats().TX.Bytes
		r := ping(t, n.a, n.b, netlab.PingOptions{Count: count, Size: length - 28, Timeout: unanswered})
		if r.Received != count {
			return false
		}
		octets, inner = n.a.outOctets(t)-octets, n.a.tunnel.Stats().TX.Bytes-inner
		twice := float64(octets) > 1.5*float64(inner)
		return twice == (via == tunnel.TransmitRaw)
	})
}

// outOctets is how many bytes the IP layer of s has sent.
func (s *site) outOctets(t testing.TB) (n uint64) {
	t.Helper()
	must(t, s.host.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		var lines [][]string // IpExt has one of names and one of numbers
		for line := range strings.Lines(string(text)) {
			if words := strings.Fields(line); words[0] == "IpExt:" {
				lines = append(lines, words)
			}
		}
		for i, name := range lines[0] {
			if name == "OutOctets" {
				n, err = strconv.ParseUint(lines[1][i], 10, 64)
			}
		}
		return err
	}))
	return n
}

// types has a run commands, one a line.
func (n *network) types(t testing.TB, lines string) {
	t.Helper()
	types(t, n.a.host, lines)
}

func types(t testing.TB, h *netlab.Host, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if _, err := h.Output(words[0], words[1:]...); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

// With auto, packets leave by a packet socket, but not while something would see
// those of a raw socket only.
func TestRoad_Auto(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	labtest.Need(t, "nft", "ip")
	for name, c := range map[string]struct{ begin, end string }{
		"output":               {chain("ip", "filter", "output"), "nft flush ruleset"},
		"postrouting":          {chain("ip", "nat", "postrouting"), "nft flush ruleset"},
		"output of both":       {chain("inet", "filter", "output"), "nft flush ruleset"},
		"route":                {chain("ip", "route", "output"), "nft flush ruleset"},
		"input":                {chain("inet", "filter", "input"), "nft flush ruleset"}, // may follow connections
		"IPsec":                {"ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir out", "ip xfrm policy flush"},
		"IPsec without policy": {"ip xfrm policy setdefault out block\nip xfrm policy add dir out", "ip xfrm policy flush\nip xfrm policy setdefault out accept"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			log := n.a.listen()
			// None of these sees IPv4 packets of this host.
			n.types(t, chain("ip6", "filter", "output")+"\n"+chain("bridge", "filter", "output")+"\nnft add table ip empty\nnft add chain ip empty jumped")
			n.start(t, nil)
			n.takes(t, tunnel.TransmitPacket)
			for turn := range 2 {
				n.types(t, c.begin)
				n.takes(t, tunnel.TransmitRaw)
				n.types(t, c.end)
				n.takes(t, tunnel.TransmitPacket)
				if got := log.count("by packet socket"); got != turn+2 {
					t.Errorf("the tunnel says %d times that it takes the packet socket:\n%s", got, log)
				}
			}
			n.balance(t)
			n.a.drops(t)
		})
	}
}

// chain is a command for a chain at a hook.
func chain(family, kind, hook string) string {
	return fmt.Sprintf("nft add table %[1]s t\nnft add chain %[1]s t c { type %[2]s hook %[3]s priority 0 ; }", family, kind, hook)
}

// Without a policy nothing leaves, but by the packet socket.
func TestRoad_IPsecBlocks(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	for via, passes := range map[tunnel.TransmitPath]bool{tunnel.TransmitAuto: false, tunnel.TransmitRaw: false, tunnel.TransmitPacket: true} {
		n := across(t)
		n.start(t, func(c *tunnel.Config) { c.Transmit = via })
		// What is in the tunnel has a policy.
		n.types(t, "ip xfrm policy add dir out dst 172.56.0.0/16\nip xfrm policy setdefault out block")
		n.obeys(t, passes)
	}
}

// A policy for ipip is one for the tunnel's packets, which are no others.
func TestRoad_IPsecOfIPIP(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	for proto, passes := range map[string]bool{"4": false, "255": true} {
		for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw} {
			n := across(t)
			n.start(t, func(c *tunnel.Config) { c.Transmit = via })
			n.types(t, "ip xfrm policy add dir out dst 192.168.8.0/24 proto "+proto+" action block")
			n.obeys(t, passes)
			if passes {
				n.takes(t, tunnel.TransmitRaw)
			}
		}
	}
}

// obeys fails the test unless, soon and for a while, pings pass, or do not.
func (n *network) obeys(t testing.TB, pass bool) {
	t.Helper()
	same := 0
	labtest.WaitFor(t, fmt.Sprintf("a firewall to be obeyed: pings pass %v", pass), func() bool {
		if ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered}).Received == 1 != pass {
			same = 0
		}
		same++
		return same > 5
	})
}

// A firewall's rule about outer packets holds, but for the packet socket, as the
// documentation says.
func TestRoad_Firewall(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "nft")
	const (
		drop     = "nft add rule ip t c ip protocol 4 drop"
		stateful = "nft add rule ip t c ip protocol 4 ct state new drop" // answers are welcome
	)
	for _, c := range []struct {
		name, rules string
		via         tunnel.TransmitPath
		passes      bool
		drops       []stats.Reason
	}{
		{"auto", chain("ip", "filter", "output") + "\n" + drop, tunnel.TransmitAuto, false, []stats.Reason{stats.Filtered}},
		{"raw", chain("ip", "filter", "output") + "\n" + drop, tunnel.TransmitRaw, false, []stats.Reason{stats.Filtered}},
		{"packet", chain("ip", "filter", "output") + "\n" + drop, tunnel.TransmitPacket, true, nil},
		{"auto, stateful", chain("ip", "filter", "input") + "\n" + stateful, tunnel.TransmitAuto, true, nil},
		{"raw, stateful", chain("ip", "filter", "input") + "\n" + stateful, tunnel.TransmitRaw, true, nil},
		{"packet, stateful", chain("ip", "filter", "input") + "\n" + stateful, tunnel.TransmitPacket, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(cfg *tunnel.Config) { cfg.Transmit = c.via })
			if c.via != tunnel.TransmitRaw {
				n.takes(t, tunnel.TransmitPacket)
			}
			n.types(t, c.rules)
			n.obeys(t, c.passes)
			n.balance(t)
			n.a.drops(t, c.drops...)
			n.types(t, "nft flush ruleset")
			n.obeys(t, true)
		})
	}
}

// What leaves by a packet socket is what leaves by a raw one: the same headers, with
// right checksums, and IDs that differ where they must.
func TestRoad_SameBytes(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*tunnel.Config){
		"default":        func(*tunnel.Config) {},
		"nopmtudisc":     func(c *tunnel.Config) { c.NoPMTUDisc = true },
		"ttl, tos":       func(c *tunnel.Config) { c.TTL, c.TOS = 7, 0x10 },
		"inherited tos":  func(c *tunnel.Config) { c.InheritTOS = true },
		"offload off, 2": func(c *tunnel.Config) { c.NoOffload, c.Queues = true, 2 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen [2][][]byte // outer and inner headers
			for i, via := range []tunnel.TransmitPath{tunnel.TransmitRaw, tunnel.TransmitPacket} {
				n := across(t)
				n.start(t, func(c *tunnel.Config) {
					change(c)
					c.Transmit = via
				})
				n.takes(t, via)
				wire := capture(t, n.r1, "a0")
				for _, df := range []bool{true, false} {
					ping(t, n.a, n.b, netlab.PingOptions{Count: 3, DF: df, TOS: 0x12})
					ping(t, n.a, n.b, netlab.PingOptions{Count: 3, Size: 4000})
				}
				n.settle(t, wire)
				ids := map[uint16]bool{}
				for _, outer := range n.a.outerPackets(wire) {
					if !outer.Valid() || outer.TotalLength() != len(outer) || outer.HdrLen() != 20 {
						t.Fatalf("via %d: on the wire is % x", via, outer[:20])
					}
					if !outer.DF() && (outer.ID() == 0 || ids[outer.ID()]) && !outer.IsFragment() {
						t.Errorf("via %d: the ID %d again", via, outer.ID())
					}
					ids[outer.ID()] = true
					if sum := packet.Sum(outer[:20], 0); sum != 0xffff {
						t.Errorf("via %d: the header sums up to %#x: % x", via, sum, outer[:20])
					}
					outer.SetID(0)
					outer.UpdateChecksum()
					seen[i] = append(seen[i], bytes.Clone(outer[:24])) // up to the inner length
				}
				n.balance(t)
				n.a.drops(t)
			}
			if len(seen[0]) != len(seen[1]) {
				t.Fatalf("%d packets by raw socket, %d by packet socket", len(seen[0]), len(seen[1]))
			}
			for i := range seen[0] {
				if !bytes.Equal(seen[0][i], seen[1][i]) {
					t.Errorf("by raw socket % x, by packet socket % x", seen[0][i], seen[1][i])
				}
			}
		})
	}
}

// T7: a router's ICMP 3/4 about what a packet socket sent is heard like any other.
func TestT7_PacketRoad(t *testing.T) {
	t.Parallel()
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitPacket} {
		n := across(t)
		n.start(t, func(c *tunnel.Config) { c.Transmit = via })
		n.takes(t, tunnel.TransmitPacket)
		before := 1480
		for _, mtu := range []int{1400, 600} {
			n.shrink(t, mtu)
			p := newProber(t, n.a, n.b)
			p.learns(t, before, mtu-20)
			p.arrives(t, mtu-20)
			before = mtu - 20
		}
		// And a device that becomes shorter.
		must(t, n.a.host.SetMTU("eth0", 500))
		n.waitMTU(t, 480)
		p := newProber(t, n.a, n.b)
		p.fragments(t)
		p.exchange(t, 1400)
		n.takes(t, tunnel.TransmitPacket)
		n.balance(t)
		n.a.drops(t, stats.TooBig)
	}
}

// O6, T3: the packet socket leads where the raw one does, by device and by TOS.
func TestRoad_DeviceAndTOS(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	t.Run("dev", func(t *testing.T) {
		t.Parallel()
		n := acrossDevice(t)
		other := capture(t, n.r1, "a0")
		n.takes(t, tunnel.TransmitPacket)
		if got := n.a.outerPackets(other); len(got) > 0 {
			t.Errorf("on eth0 are %d packets", len(got))
		}
	})
	for tos, device := range map[uint8]string{0x10: "a1", 0x08: "a0"} {
		t.Run(fmt.Sprintf("tos %#02x", tos), func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.byTOS(t, 0x10)
			n.start(t, func(c *tunnel.Config) { c.TOS = tos })
			wires := map[string]*netlab.Capture{"a0": capture(t, n.r1, "a0"), "a1": capture(t, n.r1, "a1")}
			n.takes(t, tunnel.TransmitPacket)
			n.settle(t, wires["a0"]) // where the answers come by
			for name, wire := range wires {
				if got := len(n.a.outerPackets(wire)); (got > 0) != (name == device) {
					t.Errorf("%d packets on %s", got, name)
				}
			}
		})
	}
}

// Where the way is no plain Ethernet, the raw socket sends, even if the packet socket
// was asked for.
func TestRoad_OtherLinks(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	for _, via := range []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitPacket} {
		n := across(t)
		n.types(t, "ip link add vx0 type vxlan id 7 remote 192.168.6.1 local 192.168.6.101 dstport 4789")
		if _, err := n.r1.Output("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "remote", "192.168.6.101", "local", "192.168.6.1", "dstport", "4789"); err != nil {
			t.Fatal(err)
		}
		must(t, n.a.host.AddAddr("vx0", "192.168.9.101/24"), n.r1.AddAddr("vx0", "192.168.9.1/24"), n.a.host.SetUp("vx0"), n.r1.SetUp("vx0"))
		n.deleteRoute(t, "192.168.8.0/24")
		must(t, n.a.host.AddRoute("192.168.8.0/24", "192.168.9.1"))
		log := n.a.listen()
		n.start(t, func(c *tunnel.Config) { c.Transmit = via })
		for range 5 {
			ping(t, n.a, n.b, netlab.PingOptions{})
		}
		n.balance(t)
		if log.count("by packet socket") > 0 {
			t.Errorf("via %d: the tunnel says:\n%s", via, log)
		}
	}
}

// The next hop may be known by an IPv6 address (ip route … via inet6).
func TestRoad_IPv6Gateway(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	n := across(t)
	for h, dev := range map[*netlab.Host]string{n.a.host: "eth0", n.r1: "a0"} {
		must(t, h.Sysctl("net.ipv6.conf."+dev+".disable_ipv6", "0"))
	}
	must(t, n.a.host.AddAddr("eth0", "fd00::101/64"), n.r1.AddAddr("a0", "fd00::1/64"))
	n.deleteRoute(t, "192.168.8.0/24")
	n.types(t, "ip route add 192.168.8.0/24 via inet6 fd00::1 dev eth0")
	// A neighbour with the remote address is not the way there.
	n.types(t, "ip neigh add 192.168.8.101 lladdr 02:00:00:00:00:99 dev eth0")
	n.start(t, nil)
	n.takes(t, tunnel.TransmitPacket)
	n.balance(t)
}
