package rawsock_test

import (
	"testing"

	"goipip/internal/netlab/labtest"
	"goipip/rawsock"
)

// Without the help of a guard no packet of the tunnel is answered, however many there are
// room for, and none of another tunnel is kept: what arrives is received or counted, by
// one receiver of several.
func TestHazard11_12_Credit(t *testing.T) {
	labtest.Need(t, "bpf")
	for _, shares := range []int{1, 4} {
		left, right := newPair(t)
		s := newSender(t, left, leftEnd)
		receivers := make([]*receiver, shares)
		for i := range receivers {
			receivers[i] = newShareReceiver(t, right, rightEnd, i, shares)
			if err := receivers[i].NeedsGuard(); err != nil {
				t.Fatalf("no credit: %v", err)
			}
			if i > 0 { // the first stays unconnected, as without a route
				must(t, receivers[i].Connect())
			}
		}
		before := icmpSent(t, right)
		received, dropped := 0, uint64(0)
		const packets, rounds = 40000, 3
		for range rounds {
			flood(t, s, packets)
			dropped = 0
			for _, r := range receivers {
				received += len(drain(t, r))
				dropped += r.drops()
			}
		}
		if uint64(received)+dropped != rounds*packets || dropped == 0 || received == 0 {
			t.Errorf("%d receivers: %d packets received and %d dropped, of %d", shares, received, dropped, rounds*packets)
		}
		if n := icmpSent(t, right) - before; n > 0 {
			t.Errorf("%d receivers: the kernel has sent %d ICMP errors", shares, n)
		}
	}
}

// Where the kernel does not permit such a program, the socket's buffer is the limit, and
// its drops are counted too.
func TestHazard12_WithoutCredit(t *testing.T) {
	defer rawsock.WithoutCredit()()
	t.Run("drops", TestHazard12_Drops)
	t.Run("filter", TestHazard12_FilterIsNoDrop)
	t.Run("concurrent", TestHazard12_Concurrent)
}

// Nothing is left of a credit once its receiver is closed.
func TestHazard11_CreditLeavesNothing(t *testing.T) {
	labtest.Need(t, "bpf")
	_, right := newPair(t)
	cycle := func() { must(t, newReceiver(t, right, rightEnd).Close()) }
	cycle()
	before := len(descriptors(t))
	for range 100 {
		cycle()
	}
	if now := len(descriptors(t)); now > before {
		t.Errorf("%d descriptors, %d before", now, before)
	}
}
