package tunnel_test

import (
	"net/netip"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/tunnel"

	"golang.org/x/sys/unix"
)

// keepalive has a look for the other end every 100 ms.
func keepalive(c *tunnel.Config) { c.Keepalive = tunnel.Duration(100 * time.Millisecond) }

// strict has hosts check where packets come from (ip-sysctl.rst).
func strict(t testing.TB, sites ...*site) {
	t.Helper()
	for _, s := range sites {
		for _, conf := range []string{"all", "default"} {
			must(t, s.host.Sysctl("net.ipv4.conf."+conf+".rp_filter", "1"))
		}
	}
}

// hasCarrier returns when the link of s has a carrier, or none.
func (s *site) hasCarrier(t testing.TB, want bool) {
	t.Helper()
	labtest.WaitFor(t, "the carrier of the link of "+s.host.Name, func() bool {
		l, err := s.host.Netlink().LinkByName("tun01")
		return err == nil && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 == want && s.tunnel.SilentSince().IsZero() == want
	})
}

// The link's carrier is off while the other end does not answer, for whatever reason, and each change is one line.
func TestKeepalive_Carrier(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]func(*tunnel.Config){"engine": func(*tunnel.Config) {}, "fast path": fastAuto} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			labtest.Need(t, "bpf")
			n := across(t)
			strict(t, n.a, n.b)
			log := n.a.listen()
			n.b.start(t, config(n.b, n.a)) // which has no keepalive itself
			cfg := config(n.a, n.b)
			mode(&cfg)
			keepalive(&cfg)
			n.a.start(t, cfg)
			n.a.hasCarrier(t, true)

			cuts := []struct{ cut, mend func() error }{
				{func() error { return n.r2.SetDown("b0") }, func() error { return n.r2.SetUp("b0") }},
				{func() error { return n.b.host.SetDown("tun01") }, func() error { return n.b.host.SetUp("tun01") }},
			}
			for i, c := range cuts {
				if cfg.Fast != tunnel.FastOff {
					n.a.fast(t, true)
					_, before := n.a.carried()
					labtest.WaitFor(t, "replies by the fast path", func() bool {
						_, received := n.a.carried()
						return received >= before+3
					})
				}
				must(t, c.cut())
				n.a.hasCarrier(t, false)
				if cfg.Fast != tunnel.FastOff {
					n.a.fast(t, false)
				}
				must(t, c.mend())
				n.a.hasCarrier(t, true)
				if off, on := log.count("the link's carrier is off"), log.count("the link's carrier is on again"); off != i+1 || on != i+1 {
					t.Errorf("%d lines that the carrier is off, %d that it is on, want %d:\n%s", off, on, i+1, log)
				}
			}
			if r := ping(t, n.a, n.b, netlab.PingOptions{Timeout: answered}); r.Received != 1 {
				t.Errorf("ping: %v", r)
			}
		})
	}
}

// echoes returns how many echo requests of a keepalive, or replies, a capture has.
func echoes(c *netlab.Capture, from *site, icmpType byte) (n int) {
	for _, p := range c.Packets() {
		inner := p.Data
		if inner[9] == unix.IPPROTO_IPIP {
			inner = inner[20:]
		}
		if len(inner) == 44 && inner[9] == unix.IPPROTO_ICMP && inner[20] == icmpType && netip.AddrFrom4([4]byte(inner[12:16])) == from.inner {
			n++
		}
	}
	return n
}

// Nobody on the host sees the replies, and packets that come by themselves need no echo requests.
func TestKeepalive_Unseen(t *testing.T) {
	t.Parallel()
	n := across(t)
	strict(t, n.a, n.b)
	n.b.start(t, config(n.b, n.a))
	outside := capture(t, n.a.host, "eth0")
	cfg := config(n.a, n.b)
	keepalive(&cfg)
	n.a.start(t, cfg)
	inside := capture(t, n.a.host, "tun01")
	const request, reply = 8, 0
	labtest.WaitFor(t, "replies", func() bool { return echoes(outside, n.b, reply) >= 3 })
	if got := echoes(inside, n.b, reply) + echoes(inside, n.a, request); got != 0 {
		t.Errorf("the link saw %d echoes", got)
	}
	if s := n.a.tunnel.Stats(); total(s.TX)+total(s.RX) != 0 {
		t.Errorf("echoes are counted: %+v", s)
	}

	// One more may be on its way when the pings begin.
	ping(t, n.b, n.a, netlab.PingOptions{})
	before := echoes(outside, n.a, request)
	ping(t, n.b, n.a, netlab.PingOptions{Count: 40, Interval: 10 * time.Millisecond})
	if got := echoes(outside, n.a, request) - before; got > 1 {
		t.Errorf("%d echo requests although packets came", got)
	}
	// The same message with another token is an ordinary packet.
	labtest.WaitFor(t, "an echo reply", func() bool { return echoes(outside, n.b, reply) > 0 })
	forged := innerEcho(t, outside, n.b, reply)
	forged[len(forged)-1]++
	inject(t, n.b.host, "tun01", forged)
	labtest.WaitFor(t, "the forged reply", func() bool { return echoes(inside, n.b, reply) == 1 })
}

// innerEcho returns a copy of the first inner packet of a kind.
func innerEcho(t testing.TB, c *netlab.Capture, from *site, icmpType byte) []byte {
	t.Helper()
	for _, p := range c.Packets() {
		if len(p.Data) == 64 && p.Data[9] == unix.IPPROTO_IPIP && p.Data[40] == icmpType && netip.AddrFrom4([4]byte(p.Data[32:36])) == from.inner {
			return append([]byte(nil), p.Data[20:]...)
		}
	}
	t.Fatal("no such packet")
	return nil
}

// Without a peer the request goes to the remote end's outer address, which answers by the tunnel too.
func TestKeepalive_OuterPeer(t *testing.T) {
	t.Parallel()
	n := across(t)
	strict(t, n.a, n.b)
	log := n.a.listen()
	n.b.start(t, config(n.b, n.a))
	outside := capture(t, n.a.host, "eth0")
	cfg := config(n.a, n.b)
	keepalive(&cfg)
	cfg.Peer, cfg.Address = netip.Addr{}, netip.PrefixFrom(n.a.inner, 24)
	n.a.start(t, cfg)
	labtest.WaitFor(t, "replies from the outer address", func() bool {
		replies := 0
		for _, p := range outside.Packets() {
			if len(p.Data) == 64 && p.Data[40] == 0 && netip.AddrFrom4([4]byte(p.Data[32:36])) == n.b.outer {
				replies++
			}
		}
		return replies >= 5
	})
	if log.count("carrier") > 0 {
		t.Errorf("the tunnel says:\n%s", log)
	}
}

// The settings may change while the carrier is off: without a keepalive it is on.
func TestKeepalive_Change(t *testing.T) {
	t.Parallel()
	n := across(t)
	cfg := config(n.a, n.b)
	n.a.start(t, cfg)
	with := cfg
	keepalive(&with)
	with.KeepaliveRetries = 1
	must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(with) }))
	n.a.hasCarrier(t, false)
	other := with
	other.KeepaliveRetries = 2
	must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(other) }))
	n.a.hasCarrier(t, false)
	must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(cfg) }))
	n.a.hasCarrier(t, true)
}
