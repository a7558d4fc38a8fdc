package tunnel_test

import (
	"net"
	"net/netip"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// Another program's raw socket of protocol 4 gets a copy of each packet, whether it
// reads or not, and that is all.
func TestConflict_RawSocket(t *testing.T) {
	t.Parallel()
	n := across(t)
	log := n.b.listen()
	for _, s := range []*site{n.a, n.b} {
		must(t, s.host.Do(func() error {
			other, err := net.ListenPacket("ip4:4", "0.0.0.0")
			if err == nil {
				t.Cleanup(func() { other.Close() })
			}
			return err
		}))
	}
	n.start(t, nil)
	wire := capture(t, n.r1, "a0")
	for _, end := range n.directions() {
		if r := ping(t, end[0], end[1], netlab.PingOptions{Count: 3}); r.Received != 3 || r.Duplicates > 0 {
			t.Errorf("ping from %s: %v, %d duplicates", end[0].host.Name, r, r.Duplicates)
		}
		if _, err := netlab.Transfer(labtest.Context(t), end[0].host, end[1].host, netip.AddrPortFrom(end[1].inner, 0), 1<<20); err != nil {
			t.Error(err)
		}
	}
	n.settle(t, wire)
	if got := icmpErrors(wire); len(got) > 0 {
		t.Errorf("on the wire is %v", got)
	}
	if log.count("WARN") > 0 {
		t.Errorf("the tunnel says:\n%s", log)
	}
	n.balance(t)
	n.a.drops(t)
	n.b.drops(t)
}
