package rawsock_test

import (
	"math"
	"sync"
	"testing"

	"goipip/rawsock"
)

// flood sends n packets of 1500 bytes, of which the kernel must take each.
func flood(t *testing.T, s *sender, n int) {
	t.Helper()
	payload := make([]byte, 1480)
	for i := range n {
		s.Add(outer(s.cfg, len(payload)), payload)
		if s.Len() == rawsock.BatchSize || i == n-1 {
			must(t, s.Flush())
		}
	}
	if len(s.refusals) > 0 {
		t.Fatalf("refused: %+v", s.refusals)
	}
}

// Each packet that a single receiver does not return is counted, whether or not it is
// there to receive.
func TestHazard12_Drops(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	r := newConnected(t, right, rightEnd)
	if n := r.drops(); n != 0 {
		t.Errorf("%d drops before the first packet", n)
	}
	const rounds, packets = 3, 12000 // more than the buffer of 8 MiB holds
	received := 0
	for round := 1; round <= rounds; round++ {
		flood(t, s, packets)
		received += len(drain(t, r))
		if got, sent := uint64(received)+r.drops(), uint64(round*packets); got != sent {
			t.Fatalf("%d packets received and %d dropped, of %d", received, r.drops(), sent)
		}
	}
	if r.drops() == 0 {
		t.Error("nothing was dropped: the test tests nothing")
	}

	flood(t, s, packets)
	must(t, r.Close())
	if got, sent := r.drops(), uint64((rounds+1)*packets-received); got < sent-packets || got > sent {
		t.Errorf("%d drops after Close", got)
	}
	if before := r.drops(); r.drops() != before {
		t.Error("the drops change after Close")
	}
}

// A share's filter does not count as a drop.
func TestHazard12_FilterIsNoDrop(t *testing.T) {
	left, right := newPair(t)
	r := [2]*receiver{}
	for i := range r {
		r[i] = newShareReceiver(t, right, rightEnd, i, len(r))
		must(t, r[i].Connect())
	}
	flood(t, newSender(t, left, leftEnd), 1000)
	if received := len(drain(t, r[0])) + len(drain(t, r[1])); received != 1000 {
		t.Errorf("received %d packets, want 1000", received)
	}
	if a, b := r[0].Drops(), r[1].Drops(); a != 0 || b != 0 {
		t.Errorf("%d and %d drops, want none", a, b)
	}
}

// The kernel's count is of 32 bits and wraps.
func TestHazard12_Wraps(t *testing.T) {
	const most = math.MaxUint32
	for _, tt := range []struct {
		counts []uint32
		want   uint64
	}{
		{nil, 0},
		{[]uint32{0, 0, 5, 5, 7}, 7},
		{[]uint32{most, 0}, most + 1},
		{[]uint32{most - 1, 3}, most + 4},
		{[]uint32{1 << 31, 0, 1 << 31, 0, 1}, 1<<33 + 1},
	} {
		if got := rawsock.DropTotal(tt.counts...); got != tt.want {
			t.Errorf("counts %v make %d, want %d", tt.counts, got, tt.want)
		}
	}
}

// Any goroutine may ask, also while packets are dropped and the receiver is closed.
func TestHazard12_Concurrent(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	r := newConnected(t, right, rightEnd)
	const packets = 12000
	flood(t, s, packets/2) // fills the buffer
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			last := uint64(0)
			for range 20000 {
				now := r.drops()
				if now < last || now > packets {
					t.Errorf("%d drops became %d", last, now)
					return
				}
				last = now
			}
		})
	}
	flood(t, s, packets/2)
	must(t, r.Close())
	wg.Wait()
	if r.drops() == 0 {
		t.Error("nothing was dropped: the test tests nothing")
	}
}
