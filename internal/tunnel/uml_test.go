package tunnel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/tunnel"
)

// The ipip module and goipip put each other's fragments together again, of outer
// packets and of inner ones.
func TestT12_R1_KernelPeer(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "uml", "tun", "ip", "ping", "socat")
	lab := labtest.New(t)
	router := addHost(t, lab, "router")
	guest, err := router.StartGuest(netlab.GuestConfig{Cards: []string{"tap0"}})
	must(t, err)
	a := newSite(addHost(t, lab, "a"), "192.168.6.101", "172.56.1.101")
	b := newSite(router, "192.168.8.101", "172.56.2.101") // the guest; whose host is not used
	must(t,
		lab.Veth(a.host, "eth0", router, "a0"),
		a.host.AddAddr("eth0", "192.168.6.101/24"),
		router.AddAddr("a0", "192.168.6.1/24"),
		router.AddAddr("tap0", "192.168.8.1/24"),
		a.host.AddRoute("192.168.8.0/24", "192.168.6.1"),
		router.Sysctl("net.ipv4.ip_forward", "1"),
		guest.LoadModules("ipip"),
	)
	run := func(script string) string {
		t.Helper()
		out, err := guest.Run("set -e\n" + script)
		must(t, err)
		return out
	}
	run(`ip addr add 192.168.8.101/24 dev vec0
		ip route add 192.168.6.0/24 via 192.168.8.1
		socat -b 65536 UDP4-LISTEN:7,fork PIPE >/dev/null 2>&1 &`)
	// The guest's card now and then leaves a packet until the next one comes.
	_, err = router.Start(exec.Command("ping", "-q", "-i", "0.05", "192.168.8.101"))
	must(t, err)

	for _, c := range []struct {
		name, options string // of the module's end
		change        func(*tunnel.Config)
		path          int // MTU of the router's link to the guest
	}{
		{"outer", "nopmtudisc", func(c *tunnel.Config) { c.NoPMTUDisc, c.MTU = true, tunnel.MaxMTU }, 1500},
		{"outer, over a shorter path", "nopmtudisc", func(c *tunnel.Config) { c.NoPMTUDisc, c.MTU = true, tunnel.MaxMTU }, 1400},
		{"inner", "", func(c *tunnel.Config) { c.MTU = 9000 }, 1400},
	} {
		t.Run(c.name, func(t *testing.T) {
			run("ip tunnel add tun02 mode ipip remote 192.168.6.101 local 192.168.8.101 " + c.options)
			defer run("ip tunnel del tun02")
			if c.options != "" {
				run("ip link set tun02 mtu 65515")
			}
			run("ip link set tun02 up; ip addr add 172.56.2.101 peer 172.56.1.101 dev tun02")
			must(t, router.SetMTU("tap0", c.path))
			cfg := config(a, b)
			c.change(&cfg)
			a.start(t, cfg)
			defer func() {
				a.cancel()
				must(t, a.end(t))
			}()
			labtest.WaitFor(t, "a large ping", func() bool { // which may have to find out the path
				return ping(t, a, b, netlab.PingOptions{Size: 1452, Timeout: unanswered}).Received > 0
			})
			wire := capture(t, router, "a0")
			for _, size := range []int{1, 1452, 1453, 20000, tunnel.MaxMTU - 28} {
				if r := ping(t, a, b, netlab.PingOptions{Size: size, Count: 3, Timeout: answered}); r.Received != 3 {
					t.Errorf("ping with %d bytes: %v", size, r)
				}
				// With -w it waits for late answers, too.
				out := run(fmt.Sprintf("ping -c 3 -w 10 -i 0.2 -s %d 172.56.1.101", size))
				if !strings.Contains(out, " 3 received") {
					t.Errorf("ping with %d bytes in the guest:\n%s", size, out)
				}
			}
			outer, inner := 0, 0
			for _, p := range a.outerPackets(wire) {
				if p.IsFragment() {
					outer++
				} else if packet.IPv4(p.Payload()).IsFragment() {
					inner++
				}
			}
			if cut := map[bool]int{true: outer, false: inner}[c.options != ""]; cut < 50 {
				t.Errorf("%d outer and %d inner fragments are on the wire", outer, inner)
			}
			echo(t, a, netip.AddrPortFrom(b.inner, 7), 65507)
			a.balance(t)
			a.drops(t)
		})
	}
}

// echo fails the test unless a datagram comes back.
func echo(t *testing.T, from *site, to netip.AddrPort, n int) {
	t.Helper()
	var conn *net.UDPConn
	must(t, from.host.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer conn.Close()
	want := []byte(strings.Repeat("goipip!", n)[:n])
	buf := make([]byte, 1<<16)
	labtest.WaitFor(t, "a datagram to come back", func() bool {
		must(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		if _, err := conn.Write(want); err != nil {
			return false // the path's MTU became known in between
		}
		got, err := conn.Read(buf)
		if err == nil && string(buf[:got]) != string(want) {
			t.Errorf("of a datagram of %d bytes %d come back, or others", n, got)
		}
		return err == nil
	})
}
