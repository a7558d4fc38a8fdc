package tunnel_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/tunnel"
)

// With --icmp rfc2003 a sender hears of a shorter path by its first packet that is
// too long, from the router's word (RFC 2003 §4 and §5.1), and not by the second.
func TestT7_E_RelayedAtOnce(t *testing.T) {
	t.Parallel()
	for _, forwarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("forwarded %v", forwarded), func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.strict(t)
			n.start(t, func(c *tunnel.Config) { c.RelayICMP = true })
			sender := n.a
			if forwarded {
				sender = n.client(t)
				ping(t, sender, n.b, netlab.PingOptions{})
			}
			before := 1480
			for _, mtu := range []int{1400, 600} {
				n.shrink(t, mtu)
				tun01 := capture(t, n.a.host, "tun01")
				p := newProber(t, sender, n.b)
				must(t, p.send(before))
				e := waitICMPError(t, tun01, func(icmpError) bool { return true })
				about := outgoing(t, tun01, e).Data
				if e.code != 4 || e.mtu != mtu-20 || !e.sound || e.dst != sender.inner.String() || len(e.quote) < 500 ||
					!bytes.Equal(e.quote[:26], about[:26]) { // up to the checksum
					t.Errorf("path of %d: the sender hears %v of %d bytes, mtu %d, about % x…", mtu, e, e.total, e.mtu, e.quote[:28])
				}
				labtest.WaitFor(t, "its kernel to know", func() bool { return p.mtu(t) == mtu-20 })
				p.arrives(t, mtu-20)
				if got := icmpErrors(tun01); len(got) != 1 {
					t.Errorf("path of %d: the sender hears %v, want one", mtu, got)
				}
				tun01.Close()
				before = mtu - 20
			}
			n.balance(t)
			n.a.drops(t) // it was the router that dropped them
		})
	}
}

// What a router says of a path's MTU counts as in Linux: not below min_pmtu, no
// increase; and only for senders that want DF.
func TestT7_E_RelayedMTU(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.RelayICMP = true })
	tun01 := capture(t, n.a.host, "tun01")
	df := n.tooBig()
	whole := echoReply(stranger, n.b.inner, 1480)
	for _, c := range []struct {
		about packet.IPv4
		mtu   int
		want  int // 0 for no message
	}{
		{whole[:28], 1400, 0},
		{df[:27], 1400, 0}, // too little to find its sender's socket by
		{df[:28], 1400, 1380},
		{df[:28], 1450, 1380},
		{df[:548], 1300, 1280},
		{df[:28], 500, 532},
	} {
		before := len(icmpErrors(tun01))
		n.a.sendRouterErrors(t, n.r1, n.b, 1, routerError{3, 4, c.mtu, c.about})
		n.softErrorWaits(t)
		n.settle(t, tun01)
		got := icmpErrors(tun01)[before:]
		switch {
		case c.want == 0 && len(got) > 0:
			t.Errorf("%d bytes, mtu %d: the sender hears %v, want nothing", len(c.about), c.mtu, got)
		case c.want > 0 && (len(got) != 1 || got[0].code != 4 || got[0].mtu != c.want || !bytes.Equal(got[0].quote, c.about)):
			t.Errorf("%d bytes, mtu %d: the sender hears %+v, want 3/4 with %d", len(c.about), c.mtu, got, c.want)
		}
		if c.want > 0 { // until the tunnel knows
			labtest.WaitFor(t, "the path to be known", func() bool {
				inject(t, n.a.host, "tun01", df)
				n.settle(t, tun01)
				errs := icmpErrors(tun01)
				return errs[len(errs)-1].mtu == c.want
			})
		}
	}
	n.balance(t)
}

// However many routers tell, senders hear of a bounded number (G7).
func TestG7_E_RelayLimit(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.RelayICMP = true })
	tun01 := capture(t, n.a.host, "tun01")
	must(t, n.r1.Sysctl("net.ipv4.icmp_msgs_per_sec", "0"))
	start := time.Now()
	const errors = 2000
	n.a.sendRouterErrors(t, n.r1, n.b, errors, routerError{3, 4, 1400, n.tooBig()[:28]})
	n.softErrorWaits(t)
	n.settle(t, tun01)
	got, most := len(icmpErrors(tun01)), 100+100*time.Since(start).Seconds()
	t.Logf("one sender hears of %d errors of %d", got, errors)
	if got < 10 || float64(got) > most {
		t.Errorf("one sender hears of %d errors of %d, want at most %.0f", got, errors, most)
	}
	n.balance(t)
}
