package tunnel_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// Tests of the fast path. That its packets are the same as all others is for TestEligibility of
// package fastpath, and for the oracle. With -fast, by hand, the tests of all rules use it too;
// some of them take packets for lost that a capture has not seen yet.

func fastAuto(c *tunnel.Config) { c.Fast = tunnel.FastAuto }
func fastOn(c *tunnel.Config)   { c.Fast = tunnel.FastOn }

// fastNetwork returns a network whose two ends use the fast path.
func fastNetwork(t testing.TB, mode func(*tunnel.Config)) *network {
	t.Helper()
	labtest.Need(t, "bpf")
	n := across(t)
	n.start(t, mode)
	n.a.fast(t, true)
	n.b.fast(t, true)
	return n
}

// fast returns when the kernel carries packets of s by itself, or none.
func (s *site) fast(t testing.TB, want bool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("%s: %+v", s.host.Name, s.tunnel.State())
		}
	}()
	labtest.WaitFor(t, fmt.Sprintf("%s to use the fast path: %v", s.host.Name, want), func() bool { return s.tunnel.State().Fast == want })
}

// carried returns how many packets the kernel has carried by itself.
func (s *site) carried() (sent, received uint64) {
	state := s.tunnel.State()
	return state.FastSent, state.FastReceived
}

// programs returns how many programs of tcx are on a device.
func programs(t testing.TB, h *netlab.Host, device string, at ebpf.AttachType) (n int) {
	t.Helper()
	l, err := h.Netlink().LinkByName(device)
	must(t, err, h.Do(func() error {
		found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
		if err == nil {
			n = len(found.Programs)
		}
		return err
	}))
	return n
}

// A stream passes without the engine, and is counted. When the tunnels end nothing is left.
func TestFast_Stream(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	n := fastNetwork(t, fastAuto)
	for _, end := range n.directions() {
		const size = 64 << 20
		before, beforeFar := end[0].tunnel.Stats(), end[1].tunnel.Stats()
		sent, _ := end[0].carried()
		_, received := end[1].carried()
		if _, err := netlab.Transfer(labtest.Context(t), end[0].host, end[1].host, netip.AddrPortFrom(end[1].inner, 0), size); err != nil {
			t.Fatal(err)
		}
		tx, rx := end[0].tunnel.Stats().TX, end[1].tunnel.Stats().RX
		nowSent, _ := end[0].carried()
		_, nowReceived := end[1].carried()
		sent, received = nowSent-sent, nowReceived-received
		if all := tx.Packets - before.TX.Packets; sent*10 < all*9 {
			t.Errorf("the kernel has sent %d packets of %d by itself", sent, all)
		}
		if all := rx.Packets - beforeFar.RX.Packets; received*10 < all*9 {
			t.Errorf("the kernel has received %d packets of %d by itself", received, all)
		}
		if tx.Bytes-before.TX.Bytes < size || rx.Bytes-beforeFar.RX.Bytes < size {
			t.Errorf("of %d bytes, %d are counted as sent and %d as received", size, tx.Bytes-before.TX.Bytes, rx.Bytes-beforeFar.RX.Bytes)
		}
	}
	n.balance(t)
	if programs(t, n.a.host, "eth0", ebpf.AttachTCXIngress) != 1 || programs(t, n.a.host, "tun01", ebpf.AttachTCXEgress) != 1 {
		t.Error("not one program on the device and on the link")
	}
	before := n.a.tunnel.Stats()
	n.a.cancel()
	must(t, n.a.end(t))
	if got := programs(t, n.a.host, "eth0", ebpf.AttachTCXIngress); got != 0 {
		t.Errorf("%d programs are left on the device", got)
	}
	if got := n.a.tunnel.Stats(); got.TX.Packets < before.TX.Packets || got.RX.Packets < before.RX.Packets {
		t.Errorf("after its end the tunnel has counted %+v, before %+v", got, before)
	}
}

// Superpackets are forwarded right: out of a veth, through a tunnel, into another one, and out
// by a veth again.
func TestFast_Forwarded(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	n := fastNetwork(t, fastOn)
	client := n.client(t)

	// b ── c, with a second tunnel, behind which the server is.
	c := newSite(addHost(t, n.lab, "c"), "192.168.10.2", "172.56.3.102")
	b := newSite(n.b.host, "192.168.10.1", "172.56.3.101")
	server := newSite(addHost(t, n.lab, "server"), "10.3.0.2", "10.3.0.2")
	must(t,
		n.lab.Veth(b.host, "eth1", c.host, "eth0"),
		b.host.AddAddr("eth1", "192.168.10.1/24"),
		c.host.AddAddr("eth0", "192.168.10.2/24"),
		n.lab.Veth(c.host, "lan0", server.host, "eth0"),
		c.host.AddAddr("lan0", "10.3.0.1/24"),
		server.host.AddAddr("eth0", "10.3.0.2/24"),
		server.host.AddRoute("default", "10.3.0.1"),
		b.host.Sysctl("net.ipv4.ip_forward", "1"),
		c.host.Sysctl("net.ipv4.ip_forward", "1"),
	)
	for _, end := range [][2]*site{{b, c}, {c, b}} {
		cfg := config(end[0], end[1])
		cfg.Name = "tun02"
		fastOn(&cfg)
		end[0].start(t, cfg)
	}
	must(t,
		n.a.host.AddRoute("10.3.0.0/24", "tun01"),
		b.host.AddRoute("10.3.0.0/24", "tun02"),
		c.host.AddRoute("10.1.0.0/24", "tun02"),
	)
	labtest.WaitFor(t, "the server to answer", func() bool {
		return ping(t, client, server, netlab.PingOptions{Timeout: unanswered}).Received > 0
	})
	b.fast(t, true)
	c.fast(t, true)
	for _, end := range [][2]*site{{client, server}, {server, client}} {
		if _, err := netlab.Transfer(labtest.Context(t), end[0].host, end[1].host, netip.AddrPortFrom(end[1].inner, 0), 16<<20); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []*site{n.a, n.b, b, c} {
		sent, received := s.carried()
		t.Logf("%s, %s: the kernel has sent %d and received %d packets by itself; %+v", s.host.Name, s.tunnel.Name(), sent, received, s.tunnel.Stats())
		if sent < 100 {
			t.Errorf("%s, %s: the kernel has sent %d packets by itself", s.host.Name, s.tunnel.Name(), sent)
		}
	}
	n.balance(t)
}

// A filter that comes under load is obeyed, unless the fast path is to be used in any case.
func TestFast_Filter(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "nft")
	for _, hook := range []string{"output", "input"} {
		for name, mode := range map[string]func(*tunnel.Config){"auto": fastAuto, "on": fastOn} {
			t.Run(hook+", "+name, func(t *testing.T) {
				t.Parallel()
				n := fastNetwork(t, mode)
				n.types(t, chain("ip", "filter", hook)+"\nnft add rule ip t c ip protocol 4 drop")
				n.obeys(t, name == "on")
				n.a.fast(t, name == "on")
				n.types(t, "nft flush ruleset")
				n.obeys(t, true)
				n.a.fast(t, true)
				n.balance(t)
			})
		}
	}
}

// What makes the fast path impossible or wrong ends it, and it is back afterwards.
func TestFast_EndsInTime(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "ip")
	for name, c := range map[string]struct{ begin, end string }{
		"link down":        {"ip link set tun01 down", "ip link set tun01 up"},
		"no route":         {"ip route del 192.168.8.0/24", "ip route add 192.168.8.0/24 via 192.168.6.1"},
		"loop":             {"ip route add 192.168.8.101/32 dev tun01", "ip route del 192.168.8.101/32 dev tun01"},
		"no address":       {"ip addr del 192.168.6.101/24 dev eth0", "ip addr add 192.168.6.101/24 dev eth0\nip route add 192.168.8.0/24 via 192.168.6.1"},
		"rule by protocol": {"ip rule add ipproto 4 lookup main", "ip rule del ipproto 4"},
		"device down":      {"ip link set eth0 down", "ip link set eth0 up\nip route add 192.168.8.0/24 via 192.168.6.1"},
		"locked MTU":       {"ip route change 192.168.8.0/24 via 192.168.6.1 mtu lock 400", "ip route change 192.168.8.0/24 via 192.168.6.1"},
		"IPsec":            {"ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir in", "ip xfrm policy flush"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := fastNetwork(t, fastAuto)
			for range 2 {
				n.types(t, c.begin)
				n.a.fast(t, false)
				if why := n.a.tunnel.State().WhyNotFast; why == "" {
					t.Error("no reason is told")
				} else {
					t.Log(why)
				}
				n.types(t, c.end)
				labtest.WaitFor(t, "the tunnel to work again", func() bool {
					return ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered}).Received > 0
				})
				n.a.fast(t, true)
			}
			n.balance(t)
		})
	}
}

// A stream goes on while its route changes from one device to another and back, and while
// the fast path does as well.
func TestFast_RouteFlaps(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "ip")
	n := fastNetwork(t, fastAuto)
	n.secondUplink(t)
	// Answers go to the first device, from which the tunnel has its address.
	streams := []*stream{startStream(t, n.a, n.b), startStream(t, n.b, n.a)}
	for range 10 {
		for _, via := range []string{"192.168.9.1", "192.168.6.1"} {
			n.types(t, "ip route replace 192.168.8.0/24 via "+via+" src 192.168.6.101")
			for _, s := range streams {
				s.carries(t, streamRate/32)
			}
		}
	}
	for _, s := range streams {
		s.finish(t, 3*time.Second)
	}
	n.a.fast(t, true)
	n.balance(t)
}

// The sender of one packet hears of an ICMP error (T8), then the kernel carries packets again.
func TestFast_T8_SoftErrors(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	n := fastNetwork(t, fastAuto)
	tun01 := capture(t, n.a.host, "tun01")
	for range 3 {
		heard := len(icmpErrors(tun01))
		n.a.sendICMPErrors(t, n.r1, n.b, 1, 3, 1, 0)
		n.softErrorWaits(t)
		inject(t, n.a.host, "tun01", echoReply(stranger, n.b.inner, 100))
		labtest.WaitFor(t, "its sender to hear", func() bool { return len(icmpErrors(tun01)) == heard+1 })
	}
	must(t, tun01.Close())
	n.a.fast(t, true)
	before, _ := n.a.carried()
	ping(t, n.a, n.b, netlab.PingOptions{Count: 10})
	if after, _ := n.a.carried(); after < before+10 {
		t.Errorf("the kernel has sent %d packets by itself, and %d before ten pings", after, before)
	}
	n.balance(t)
}

// Many tunnels of one process use it at once. It takes the kernel some 20 ms for each to begin, and
// once more to end, so that those of the far end do without.
func TestFast_Many(t *testing.T) {
	needsLocal(t)
	if *crowd {
		t.Skip("each is one of many already")
	}
	t.Parallel()
	labtest.Long(t)
	labtest.Need(t, "bpf")
	const tunnels = 500
	start := time.Now()
	a, b := hosts(t)
	sites := [2]*site{a, b}
	var ends [2][]*tunnel.Tunnel
	outer := func(end, i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(100 + end), byte(i >> 8), byte(i)})
	}
	inner := func(end, i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(200 + end), byte(i >> 8), byte(i)})
	}
	for end, s := range sites {
		far := 1 - end
		must(t, s.host.AddRoute(fmt.Sprintf("10.%d.0.0/16", 100+far), sites[far].outer.String()))
		for i := range tunnels {
			must(t, s.host.AddAddr("lo", outer(end, i).String()+"/32"))
		}
		must(t, s.host.Do(func() error {
			host, err := tunnel.OpenHost(1, quiet())
			if err != nil {
				return err
			}
			t.Cleanup(func() {
				var closing sync.WaitGroup
				for _, x := range ends[end] {
					closing.Go(x.Close)
				}
				closing.Wait()
				host.Close()
			})
			for i := range tunnels {
				cfg := tunnel.Config{
					Name: fmt.Sprintf("tun%d", i), Queues: 1, Local: outer(end, i), Remote: outer(far, i),
					Address: netip.PrefixFrom(inner(end, i), 32), Peer: inner(far, i),
				}
				if s == a {
					fastOn(&cfg)
				}
				x, err := host.Open(cfg, quiet())
				if err != nil {
					return err
				}
				ends[end] = append(ends[end], x)
			}
			return nil
		}))
	}
	t.Logf("open after %v", time.Since(start))
	ctx := labtest.Context(t)
	for i := 0; i < tunnels; i += 7 {
		to := inner(1, i)
		labtest.WaitFor(t, "an answer by "+ends[0][i].Name(), func() bool {
			r, err := a.host.Ping(ctx, to, netlab.PingOptions{Timeout: unanswered})
			return err == nil && r.Received == 1
		})
	}
	for _, x := range ends[0] {
		labtest.WaitFor(t, x.Name()+" to use the fast path", func() bool { return x.State().Fast })
	}
	t.Logf("all use it after %v", time.Since(start))
	for i := 0; i < tunnels; i += 7 {
		x := ends[0][i]
		before := x.State()
		if r, err := a.host.Ping(ctx, inner(1, i), netlab.PingOptions{Count: 3, Timeout: answered}); err != nil || r.Received != 3 {
			t.Fatalf("ping by %s: %v, %v", x.Name(), r, err)
		}
		after := x.State()
		if after.FastSent < before.FastSent+3 || after.FastReceived < before.FastReceived+3 {
			t.Errorf("by %s the kernel has carried %d and %d packets by itself, before %d and %d",
				x.Name(), after.FastSent, after.FastReceived, before.FastSent, before.FastReceived)
		}
		if d := x.Stats().TX.Drops; d != (stats.Drops{}) {
			t.Errorf("%s has dropped %v", x.Name(), d)
		}
	}
	if got := programs(t, a.host, "eth0", ebpf.AttachTCXIngress); got != 1 {
		t.Errorf("%d programs on the device", got)
	}
}

// tcpdump on the link sees all packets, in both directions, and afterwards the kernel carries
// them by itself again.
func TestFast_Tcpdump(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	labtest.Need(t, "tcpdump")
	for name, flags := range map[string][]string{"": nil, "not promiscuous": {"-p"}, "all links": {"-p", "-i", "any"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := fastNetwork(t, fastOn)
			done := make(chan string, 1)
			go func() {
				args := append([]string{"-l", "-n", "-i", "tun01", "-c", "20"}, flags...)
				out, err := n.a.host.Output("tcpdump", append(args, "icmp and host "+n.b.inner.String())...)
				if err != nil {
					out += err.Error()
				}
				done <- out
			}()
			labtest.WaitFor(t, "tcpdump to be noticed", func() bool {
				why := n.a.tunnel.State().WhyNotFast
				return strings.Contains(why, "promiscuous") || strings.Contains(why, "packet socket")
			})
			t.Log(n.a.tunnel.State().WhyNotFast)
			var out string
			labtest.WaitFor(t, "tcpdump, which takes its time to start, to have seen enough", func() bool {
				if r := ping(t, n.a, n.b, netlab.PingOptions{Count: 5, Timeout: answered}); r.Received != 5 {
					t.Errorf("ping: %v", r)
				}
				select {
				case out = <-done:
					return true
				default:
					return false
				}
			})
			if requests, replies := strings.Count(out, "echo request"), strings.Count(out, "echo reply"); requests < 5 || replies < 5 {
				t.Errorf("it has seen %d requests and %d replies:\n%s", requests, replies, out)
			}
			n.a.fast(t, true)
			n.balance(t)
		})
	}
}
