package tunnel_test

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// longestStall is how long a TCP connection may rest while the kernel finds out
// about a neighbour: as long as it takes by itself, and a retransmission's timeout.
const longestStall = 8 * time.Second

// hurry has a find out about its neighbours soon (arp(7)): that one was heard of is
// worth half a second or so, and a question is asked thrice within three tenths.
func (n *network) hurry(t testing.TB) {
	t.Helper()
	for name, value := range map[string]string{
		"base_reachable_time_ms": "500", "delay_first_probe_time": "0", "retrans_time_ms": "100",
	} {
		must(t, n.a.host.Sysctl("net.ipv4.neigh.eth0."+name, value))
	}
}

// nextHop is what a's kernel knows of its router.
func (n *network) nextHop(t testing.TB) (entry netlink.Neigh) {
	t.Helper()
	eth0, err := n.a.host.Netlink().LinkByName("eth0")
	must(t, err)
	list, err := n.a.host.Netlink().NeighList(eth0.Attrs().Index, netlink.FAMILY_V4)
	must(t, err)
	for _, e := range list {
		if e.IP.Equal(net.IPv4(192, 168, 6, 1)) {
			entry = e
		}
	}
	return entry
}

// setAddr gives a device of r1 another link-layer address.
func (n *network) setAddr(t testing.TB, device, addr string) {
	t.Helper()
	link, err := n.r1.Netlink().LinkByName(device)
	must(t, err)
	mac, err := net.ParseMAC(addr)
	must(t, err, n.r1.Netlink().LinkSetHardwareAddr(link, mac))
}

// The next hop gets another link-layer address: traffic goes on, by either socket,
// when the kernel knows.
func TestRoad_LinkLayerAddress(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, n *network){
		"told":                    func(t *testing.T, n *network) { must(t, n.r1.Sysctl("net.ipv4.conf.a0.arp_notify", "1")) },
		"asked for by the router": func(*testing.T, *network) {},
		"found out": func(t *testing.T, n *network) { // the router itself has no question
			eth0, err := n.a.host.Netlink().LinkByName("eth0")
			must(t, err)
			a0, err := n.r1.Netlink().LinkByName("a0")
			must(t, err, n.r1.Netlink().NeighSet(&netlink.Neigh{
				LinkIndex: a0.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.IPv4(192, 168, 6, 101), HardwareAddr: eth0.Attrs().HardwareAddr,
			}))
		},
	} {
		for _, via := range []tunnel.TransmitPath{tunnel.TransmitRaw, tunnel.TransmitAuto} {
			t.Run(name+[]string{" auto", " raw"}[via], func(t *testing.T) {
				t.Parallel()
				n := across(t)
				n.hurry(t)
				prepare(t, n)
				n.start(t, func(c *tunnel.Config) { c.Transmit = via })
				if via == tunnel.TransmitAuto {
					n.takes(t, tunnel.TransmitPacket)
				}
				s := startStream(t, n.a, n.b)
				for _, addr := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02"} {
					s.carries(t, streamRate/8)
					n.setAddr(t, "a0", addr)
					s.carries(t, streamRate/8)
					labtest.WaitFor(t, "the new address to be known", func() bool {
						return n.nextHop(t).HardwareAddr.String() == addr
					})
				}
				s.finish(t, longestStall)
				if via == tunnel.TransmitAuto {
					n.takes(t, tunnel.TransmitPacket)
				}
				n.balance(t)
			})
		}
	}
}

// A neighbour that was heard of long ago is asked while packets go there, which
// no packet socket brings about, and not otherwise.
func TestRoad_NeighbourIsAsked(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	n := across(t)
	n.hurry(t)
	log := n.a.listen()
	n.start(t, nil)
	n.takes(t, tunnel.TransmitPacket)
	raw := log.count("by raw socket")
	stop := flood(t, n.a, n.b)
	for range 3 {
		labtest.WaitFor(t, "the neighbour to be doubted", func() bool { return n.nextHop(t).State != netlink.NUD_REACHABLE })
		labtest.WaitFor(t, "the neighbour to be asked", func() bool { return n.nextHop(t).State == netlink.NUD_REACHABLE })
	}
	stop()
	if log.count("by raw socket") > raw {
		t.Errorf("meanwhile the tunnel says:\n%s", log)
	}
	n.balance(t)
	// Without packets it is let alone, but for a last question about the last of them.
	const second = 100 // in the ticks of struct nda_cacheinfo
	labtest.WaitFor(t, "the neighbour to be let alone", func() bool {
		e := n.nextHop(t)
		return e.State == netlink.NUD_STALE && e.Confirmed > 3*second
	})
}

// A neighbour that is gone is so for the packet socket as soon as for the kernel.
func TestRoad_NeighbourVanishes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		leave, come func(t *testing.T, n *network)
	}{
		"does not answer": {
			func(t *testing.T, n *network) { must(t, n.r1.Sysctl("net.ipv4.conf.a0.arp_ignore", "8")) },
			func(t *testing.T, n *network) { must(t, n.r1.Sysctl("net.ipv4.conf.a0.arp_ignore", "0")) },
		},
		"address gone": {
			func(t *testing.T, n *network) { n.r1Address(t, n.r1.Netlink().AddrDel) },
			func(t *testing.T, n *network) { n.r1Address(t, n.r1.Netlink().AddrAdd) },
		},
		"cable cut": {
			func(t *testing.T, n *network) { must(t, n.r1.SetDown("a0")) },
			func(t *testing.T, n *network) { must(t, n.r1.SetUp("a0")) },
		},
		"forgotten": {
			func(t *testing.T, n *network) {
				e := n.nextHop(t)
				must(t, n.r1.Sysctl("net.ipv4.conf.a0.arp_ignore", "8"), n.a.host.Netlink().NeighDel(&e))
			},
			func(t *testing.T, n *network) { must(t, n.r1.Sysctl("net.ipv4.conf.a0.arp_ignore", "0")) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.hurry(t)
			log := n.a.listen()
			n.start(t, nil)
			n.takes(t, tunnel.TransmitPacket)
			stop := flood(t, n.a, n.b)
			raw := log.count("by raw socket")
			c.leave(t, n)
			labtest.WaitFor(t, "the packet socket to end", func() bool { return log.count("by raw socket") > raw })
			if state := n.nextHop(t).State; state&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE) != 0 {
				t.Errorf("it ends while the kernel has the neighbour in state %#x", state)
			}
			c.come(t, n)
			stop()
			n.takes(t, tunnel.TransmitPacket)
			n.balance(t)
		})
	}
}

// r1Address adds or deletes the address of a's gateway.
func (n *network) r1Address(t testing.TB, do func(netlink.Link, *netlink.Addr) error) {
	t.Helper()
	a0, err := n.r1.Netlink().LinkByName("a0")
	must(t, err)
	addr, err := netlink.ParseAddr("192.168.6.1/24")
	must(t, err, do(a0, addr))
}

// Routes and devices come and go: packets follow, and what has no way is counted
// once.
func TestRoad_Routes(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	n := across(t)
	n.secondUplink(t)
	// The tunnel's address stays when a device loses its own.
	must(t, n.a.host.AddAddr("lo", "192.168.6.101/32"))
	n.start(t, nil)
	n.takes(t, tunnel.TransmitPacket)
	s := startStream(t, n.a, n.b)
	wires := map[string]*netlab.Capture{}
	by := func(device string) {
		t.Helper()
		wires[device] = capture(t, n.r1, device)
		labtest.WaitFor(t, "packets on "+device, func() bool { return len(n.a.outerPackets(wires[device])) > 100 })
		s.carries(t, streamRate/16)
		wires[device].Close()
	}
	by("a0")
	prefix, err := netlink.ParseIPNet("192.168.8.0/24")
	must(t, err, n.a.host.Netlink().RouteReplace(&netlink.Route{Dst: prefix, Gw: net.IPv4(192, 168, 9, 1)}))
	by("a1")
	n.takes(t, tunnel.TransmitPacket)
	n.a.drops(t)

	// The route goes, with its device, and by itself.
	for _, end := range []func(){
		func() { must(t, n.a.host.SetDown("eth1")) },
		func() { n.deleteRoute(t, "192.168.8.0/24") },
	} {
		before := n.a.tunnel.Stats().TX.Drops[stats.NoRoute]
		end()
		labtest.WaitFor(t, "packets without a route", func() bool { return n.a.tunnel.Stats().TX.Drops[stats.NoRoute] > before })
		must(t, n.a.host.AddRoute("192.168.8.0/24", "192.168.6.1"))
		by("a0")
		n.takes(t, tunnel.TransmitPacket)
	}
	// A device that is down for a moment.
	must(t, n.a.host.SetDown("eth0"), n.a.host.SetUp("eth0"), n.a.host.AddRoute("192.168.8.0/24", "192.168.6.1"))
	by("a0")
	s.finish(t, longestStall)
	n.takes(t, tunnel.TransmitPacket)
	n.balance(t)
	n.a.drops(t, stats.NoRoute)
}
