package netlab_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// optionSets are ways to run goipip against another implementation.
var optionSets = []string{"", "--offload off", "--queues 2", "--queues 2 --offload off"}

// TestPeerSocat has socat at the other end, which knows no more of ipip than protocol number 4.
func TestPeerSocat(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "socat", "ip")
	for _, options := range optionSets[:2] {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			l.end01.start(t, strings.Fields(options)...)
			start(t, l.ns02, exec.Command("socat", "TUN:172.56.2.101/24,tun-type=tun,iff-no-pi,iff-up,tun-name=t0",
				"IP4-SENDTO:192.168.6.101:4,bind=192.168.8.101"))
			labtest.WaitFor(t, "socat's device", func() bool { return isUp(l.ns02, "t0") })
			run(t, l.ns02, "ip link set t0 mtu 1480")
			run(t, l.ns02, "ip route add 172.56.1.101 dev t0")

			l.pingBothWays(t)
			l.ping(t, netlab.PingOptions{Size: maxEcho, DF: true})
			l.ping(t, netlab.PingOptions{Size: 4000, Count: 5})
			l.transfer(t, transferLen)
			l.reverse().transfer(t, transferLen)
			// One at a time: bursts overflow socat's socket.
			l.echoEachSize(t, "udp", maxEcho)
			l.reverse().echoEachSize(t, "udp", maxEcho)
		})
	}
}

// newKernelPeer returns two hosts on a veth: goipip with options on a, and on b an ipip tunnel in the kernel, which sends
// superpackets with unfinished checksums.
func newKernelPeer(t *testing.T, options ...string) path {
	t.Helper()
	labtest.Need(t, "bpf", "tun")
	lab := labtest.New(t)
	p := path{
		a: newHost(t, lab, "goipip"), addrA: netip.MustParseAddr("172.56.1.101"),
		b: newHost(t, lab, "kernel"), addrB: netip.MustParseAddr("172.56.2.101"),
	}
	if err := lab.Veth(p.a, "veth", p.b, "veth"); err != nil {
		t.Fatal(err)
	}
	local, remote := netip.MustParsePrefix("192.168.6.101/24"), netip.MustParsePrefix("192.168.6.102/24")
	if err := p.a.AddAddr("veth", local.String()); err != nil {
		t.Fatal(err)
	}
	attachIPIP(t, p.reverse(), "veth", remote, local)
	end{p.a, "tun01", local.Addr().String(), remote.Addr().String(), p.addrA.String(), p.addrB.String()}.start(t, options...)
	return p
}

func TestPeerKernel(t *testing.T) {
	t.Parallel()
	for _, options := range optionSets {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			p := newKernelPeer(t, strings.Fields(options)...)
			p.pingBothWays(t)
			for _, p := range []path{p, p.reverse()} {
				p.ping(t, netlab.PingOptions{Size: maxEcho, DF: true})
				p.ping(t, netlab.PingOptions{Size: fragmented, Count: 5})
				p.transfer(t, 64<<20)
				p.datagrams(t, 500, maxEcho)
				p.datagrams(t, 500, 4)
				p.datagrams(t, 50, 8000)
			}
			p.carriesTCP(t)
		})
	}
}

// The kernel's superpackets do reach goipip, or TestPeerKernel would prove less than it says.
func TestPeerKernelSendsSuperpackets(t *testing.T) {
	t.Parallel()
	p := newKernelPeer(t)
	c := startCapture(t, p.a, "veth")
	p.reverse().transfer(t, transferLen)
	if n, largest := superpackets(c); n == 0 {
		t.Errorf("no packet is longer than %d bytes", largest)
	}
}

// Behind goipip is a third host, for which the kernel must be able to cut superpackets in pieces again.
func TestPeerKernelForwarded(t *testing.T) {
	t.Parallel()
	for _, options := range optionSets {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			labtest.Need(t, "bpf", "tun")
			lab := labtest.New(t)
			peer, goipip, behind := newHost(t, lab, "kernel"), newHost(t, lab, "goipip"), newHost(t, lab, "behind")
			local, remote := netip.MustParsePrefix("192.168.6.101/24"), netip.MustParsePrefix("192.168.6.102/24")
			if err := errors.Join(
				lab.Veth(goipip, "veth", peer, "veth"),
				goipip.AddAddr("veth", local.String()),
				lab.Veth(goipip, "inside", behind, "veth"),
				goipip.AddAddr("inside", "10.3.0.1/24"),
				behind.AddAddr("veth", "10.3.0.3/24"),
				behind.AddRoute("default", "10.3.0.1"),
				goipip.Sysctl("net.ipv4.ip_forward", "1"),
			); err != nil {
				t.Fatal(err)
			}
			p := path{a: behind, addrA: netip.MustParseAddr("10.3.0.3"), b: peer, addrB: netip.MustParseAddr("172.56.2.101")}
			attachIPIP(t, p.reverse(), "veth", remote, local)
			end{goipip, "tun01", local.Addr().String(), remote.Addr().String(), "172.56.1.101", p.addrB.String()}.
				start(t, strings.Fields(options)...)
			for _, p := range []path{p, p.reverse()} {
				p.ping(t, netlab.PingOptions{})
				p.transfer(t, transferLen)
				p.datagrams(t, 500, maxEcho)
			}
		})
	}
}

// superpackets counts the ipip packets that were received with more than Ethernet carries.
func superpackets(c *netlab.Capture) (n, largest int) {
	for _, p := range c.Packets() {
		if _, _, ok := headers(p); ok && !p.Outgoing {
			largest = max(largest, len(p.Data))
			if len(p.Data) > vethMTU {
				n++
			}
		}
	}
	return n, largest
}

// TestPeerBehindGRO has a receiving kernel that merges goipip's packets, as behind nearly every real network card.
func TestPeerBehindGRO(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ethtool")
	for _, options := range optionSets {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			for _, h := range []struct {
				host *netlab.Host
				devs []string
			}{
				{l.ns01, []string{"veth01"}}, {l.ns02, []string{"veth02"}}, {l.router, []string{"veth01_p", "veth02_p"}},
			} {
				for _, dev := range h.devs {
					mergeOn(t, h.host, dev)
				}
			}
			l.start(t, strings.Fields(options)...)
			c := startCapture(t, l.ns02, "veth02")
			l.transfer(t, 4*transferLen)
			if n, largest := superpackets(c); n == 0 {
				t.Errorf("nothing was merged: no packet is longer than %d bytes", largest)
			}
			c.Close()
			l.carriesTCP(t)
			l.datagrams(t, 500, maxEcho)
			l.ping(t, netlab.PingOptions{Size: fragmented, Count: 5})
		})
	}
}

// mergeOn turns GRO on for what dev receives, which on a veth needs threaded NAPI to have more than one packet at a time,
// and turns off what would send superpackets.
func mergeOn(t *testing.T, host *netlab.Host, dev string) {
	t.Helper()
	run(t, host, "ethtool -K "+dev+" gro on tso off gso off")
	// A new mount of sysfs shows the namespace of its mounter.
	const script = `mount -t sysfs sysfs /sys && echo 1 >/sys/class/net/$0/threaded`
	if _, err := host.Output("unshare", "--mount", "sh", "-c", script, dev); err != nil {
		t.Fatal(err)
	}
}

// TestPeerIPIPModule is Lab 2 with a User Mode Linux in the place of ns02, whose tunnel is that of ipip.ko.
func TestPeerIPIPModule(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "uml", "tun", "socat", "ip", "ping")
	lab := labtest.New(t)
	ns01, router := newHost(t, lab, "ns01"), newHost(t, lab, "router")
	ns02, err := router.StartGuest(netlab.GuestConfig{Cards: []string{"veth02_p"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		lab.Veth(ns01, "veth01", router, "veth01_p"),
		ns01.AddAddr("veth01", "192.168.6.101/24"),
		router.AddAddr("veth01_p", "192.168.6.1/24"),
		router.AddAddr("veth02_p", "192.168.8.1/24"),
		ns01.AddRoute("192.168.8.0/24", "192.168.6.1"),
		router.Sysctl("net.ipv4.ip_forward", "1"),
		ns02.LoadModules("ipip"),
	); err != nil {
		t.Fatal(err)
	}
	runIn(t, ns02, `set -e
		ip addr add 192.168.8.101/24 dev vec0
		ip route add 192.168.6.0/24 via 192.168.8.1
		ip tunnel add tun02 mode ipip remote 192.168.6.101 local 192.168.8.101
		ip link set dev tun02 up
		ip addr add 172.56.2.101 peer 172.56.1.101 dev tun02`)
	// The guest's card now and then leaves a packet until the next one comes. So one always comes.
	start(t, router, exec.Command("ping", "-q", "-i", "0.05", "192.168.8.101"))
	end01 := end{ns01, "tun01", "192.168.6.101", "192.168.8.101", "172.56.1.101", "172.56.2.101"}
	p := path{a: ns01, addrA: netip.MustParseAddr(end01.inner), addrB: netip.MustParseAddr(end01.peer)}

	for _, options := range optionSets {
		t.Run("options "+options, func(t *testing.T) {
			tun01 := end01.start(t, strings.Fields(options)...)
			p.ping(t, netlab.PingOptions{Count: 3, Reply: p.untouched(t)})
			p.ping(t, netlab.PingOptions{Size: maxEcho, DF: true})
			p.refused(t, maxEcho+1)
			p.ping(t, netlab.PingOptions{Size: fragmented})
			for _, ping := range []string{
				"ping -c 3 -i 0.2 172.56.1.101",
				fmt.Sprintf("ping -c 3 -i 0.2 -M do -s %d 172.56.1.101", maxEcho),
				fmt.Sprintf("ping -c 3 -i 0.2 -s %d 172.56.1.101", fragmented),
			} {
				mentions(t, ping+" in the guest", runIn(t, ns02, ping), "3 received", " 0% packet loss", "ttl=64")
			}
			if _, err := ns02.Echo(labtest.Context(t), ns01, netip.AddrPortFrom(p.addrA, 0), 4*transferLen); err != nil {
				t.Error(err)
			}
			tun01.hasNoComplaint(t)
			tun01.exits(t, end01, func() error { return ns01.DeleteLink("tun01") })
		})
	}
	t.Run("keepalive", func(t *testing.T) {
		runIn(t, ns02, "for conf in all default vec0 tun02; do echo 1 >/proc/sys/net/ipv4/conf/$conf/rp_filter; done")
		tun01 := end01.startKeepalive(t)
		end01.follows(t, tun01, func() { runIn(t, ns02, "ip link set tun02 down") }, func() { runIn(t, ns02, "ip link set tun02 up") })
		p.ping(t, netlab.PingOptions{})
	})
	t.Run("no keepalive as GRE's", func(t *testing.T) {
		returnsNoMartian(t, ns01, ns02)
	})
}

// returnsNoMartian shows why goipip's keepalive asks for a reply: a kernel with the module forwards what comes by the tunnel for
// this end, but not with a source address of its own, as GRE's keepalive has it.
func returnsNoMartian(t *testing.T, ns01 *netlab.Host, ns02 *netlab.Guest) {
	const own, other = "192.168.8.101", "172.56.1.101"
	runIn(t, ns02, "echo 1 >/proc/sys/net/ipv4/ip_forward; for conf in all default vec0 tun02; do echo 0 >/proc/sys/net/ipv4/conf/$conf/rp_filter; done")
	c := startCapture(t, ns01, "veth01")
	defer c.Close()
	var conn net.PacketConn
	if err := ns01.Do(func() (err error) { conn, err = net.ListenPacket("ip4:4", "192.168.6.101"); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, source := range []string{own, own, own, other} {
		inner := ipPacket(unix.IPPROTO_UDP, source, "192.168.6.101", datagram(1, 10))
		if _, err := conn.WriteTo(inner, &net.IPAddr{IP: net.ParseIP(own)}); err != nil {
			t.Fatal(err)
		}
	}
	back := func(source string) func(netlab.Captured) bool {
		return func(p netlab.Captured) bool {
			h, err := ipv4.ParseHeader(p.Data)
			return err == nil && !p.Outgoing && h.Protocol == unix.IPPROTO_UDP && h.Src.String() == source
		}
	}
	if _, err := c.Wait(labtest.Context(t), back(other)); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(c.Packets(), back(own)) {
		t.Error("a packet from the guest's own address comes back: GRE's keepalive would do")
	}
}
