package tunnel_test

import (
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// What is captured of dropped packets is what is counted: each packet once, by its reason.
func TestG5_Captured(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	n := across(t)
	n.start(t, nil)
	sender, receiver := newTapped(t, n.a), newTapped(t, n.b)
	received := n.badPackets(t).rx
	n.shorten(t)
	n.balance(t)

	must(t, n.b.host.SetDown("tun01"))
	labtest.WaitFor(t, "the tunnel to know that", func() bool { return !n.b.tunnel.State().Up && !n.b.tunnel.State().Fast })
	for range 3 {
		inject(t, n.a.host, "", outerOf(n.a, n.b, echoReply(n.a.inner, n.b.inner, 100)))
		received[stats.LinkDown]++
	}

	n.types(t, "ip rule add pref 100 ipproto 4 prohibit")
	labtest.WaitFor(t, "a packet to be refused", func() bool {
		_, _ = n.a.host.Ping(t.Context(), n.b.inner, netlab.PingOptions{Timeout: unanswered})
		d := n.a.tunnel.Stats().TX.Drops
		return d[stats.Filtered]+d[stats.NoRoute] > 0 // the latter without a local address
	})

	for reason, count := range received.All() {
		receiver.has(t, reason, count)
	}
	sent := n.a.tunnel.Stats().TX.Drops
	for reason, count := range sent.All() {
		sender.has(t, reason, count)
	}
}

// tapped is what a site has dropped, as captured.
type tapped struct {
	site *site
	tap  *tunnel.Tap
	got  map[stats.Reason]uint64
}

func newTapped(t *testing.T, s *site) *tapped {
	c := &tapped{site: s, tap: s.tunnel.Tap(), got: map[stats.Reason]uint64{}}
	t.Cleanup(c.tap.Close)
	return c
}

// has reads until so many packets were captured for a reason.
func (c *tapped) has(t *testing.T, reason stats.Reason, want uint64) {
	t.Helper()
	for c.got[reason] < want {
		type next struct {
			reason  stats.Reason
			problem string
		}
		read := make(chan next, 1)
		go func() {
			d, ok := c.tap.Next()
			if !ok {
				read <- next{problem: "the end"}
				return
			}
			defer c.tap.Free(d)
			n := next{reason: d.Reason}
			p := packet.IPv4(d.Packet)
			switch {
			case d.Sent != (c.site.host.Name == "a"):
				n.problem = "the wrong direction"
			case d.Length != len(d.Packet) || d.Length == 0:
				n.problem = "not the whole packet"
			case d.Outer != 0 && (d.Outer != packet.IPv4HdrLen || p.Protocol() != 4):
				n.problem = "another outer header"
			case d.Outer == 0 && p.Protocol() == 4 && d.Reason != stats.TooDeep:
				n.problem = "an outer header that nothing is said of"
			case d.Reason == stats.TTLExpired && p[d.Outer:].TTL() != 0:
				n.problem = "another packet"
			}
			read <- n
		}()
		n := labtest.Within(t, "a packet that was dropped for "+reason.String(), read)
		if n.problem != "" {
			t.Fatalf("%s: captured %s", n.reason, n.problem)
		}
		c.got[n.reason]++
	}
	if c.got[reason] != want {
		t.Errorf("captured %d packets that were dropped for %v, want %d", c.got[reason], reason, want)
	}
}
