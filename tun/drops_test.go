package tun_test

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"goipip/internal/netlab/labtest"
	"goipip/tun"
)

// Packets for which the ring of a queue has no room are counted one by one, and the others
// are read.
func TestHazard12b_QueueDrops(t *testing.T) {
	for _, ring := range []int{4096, 100} { // the length that Setup sets, and one set later
		t.Run(fmt.Sprintf("txqueuelen=%d", ring), func(t *testing.T) {
			h := newHost(t)
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
			if ring != 4096 {
				setTxQueueLen(t, h, "tun01", ring)
			}
			const n = 5000
			c := listen(t, h, here)
			var read int
			// Some slots of a ring are free a few packets after they were read
			// (__ptr_ring_discard_one), so the second round may find a few less.
			for round := 1; round <= 2; round++ {
				for range n {
					send(t, c, "x")
				}
				dropped := d.QueueDrops()
				if want := uint64(n - ring); round == 1 && dropped != want {
					t.Errorf("QueueDrops() = %d after %d packets for a ring of %d, want %d", dropped, n, ring, want)
				}
				r := round*n - int(dropped) - read // as many as the ring must hold now
				if r > ring || r < ring-16 {
					t.Fatalf("QueueDrops() = %d after round %d, so that a ring of %d holds %d packets", dropped, round, ring, r)
				}
				readHeld(t, d, c, r)
				read += r
			}
		})
	}
}

// readHeld reads all packets that the device holds, and fails unless they are n.
func readHeld(t *testing.T, d *tun.Device, c *net.UDPConn, n int) {
	t.Helper()
	const mark = "mark"
	r := tun.NewReader()
	for got := 0; ; {
		packets, err := read(r, d.Queues()[0])
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", got, n, err)
		}
		for _, p := range packets {
			if udpPayload(p.Bytes) != mark {
				got++
			} else if got == n {
				return
			} else {
				t.Fatalf("read %d packets, want %d", got, n)
			}
		}
		if got >= n {
			send(t, c, mark)
		}
	}
}

func setTxQueueLen(t *testing.T, h *host, name string, n int) {
	t.Helper()
	l, err := h.Netlink().LinkByName(name)
	if err == nil {
		err = h.Netlink().LinkSetTxQLen(l, n)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The last known count of a link that is gone stays.
func TestHazard12b_LinkGone(t *testing.T) {
	const n = 4096 + 7
	for _, way := range []string{"moved", "deleted", "closed"} {
		t.Run(way, func(t *testing.T) {
			labtest.Need(t, "root", "tun")
			lab := labtest.New(t)
			h, other := addHost(t, lab, "host"), addHost(t, lab, "other")
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1})
			c := listen(t, h, here)
			for range n {
				send(t, c, "x")
			}
			if way != "closed" { // Close asks by itself
				if got := d.QueueDrops(); got != 7 {
					t.Fatalf("QueueDrops() = %d, want 7", got)
				}
			}
			switch way {
			case "moved":
				move(t, h, "tun01", other)
			case "deleted":
				if err := h.DeleteLink("tun01"); err != nil {
					t.Fatal(err)
				}
			case "closed":
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if got := d.QueueDrops(); got != 7 {
					t.Errorf("QueueDrops() = %d of a link that was %s, want 7", got, way)
				}
			}
		})
	}
}

// LastQueueDrops has what QueueDrops found last, and does not wait for one that asks the kernel.
func TestHazard12b_LastQueueDrops(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1})
	c := listen(t, h, here)
	for range 4096 + 7 {
		send(t, c, "x")
	}
	if got := d.LastQueueDrops(); got != 0 {
		t.Errorf("LastQueueDrops() = %d before QueueDrops", got)
	}
	if got := d.QueueDrops(); got != 7 {
		t.Fatalf("QueueDrops() = %d, want 7", got)
	}
	defer d.Asking()()
	got := make(chan uint64, 1)
	go func() { got <- d.LastQueueDrops() }()
	if n := labtest.Within(t, "LastQueueDrops", got); n != 7 {
		t.Errorf("LastQueueDrops() = %d, want 7", n)
	}
}

// Goroutines may call QueueDrops while another closes the device.
func TestHazard12b_Concurrent(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1})
	c := listen(t, h, here)
	for range 4096 + 7 {
		send(t, c, "x")
	}
	var wg sync.WaitGroup
	first := make(chan struct{}, 4)
	for range cap(first) {
		wg.Go(func() {
			for i := range 1000 {
				if got := d.QueueDrops(); got != 7 {
					t.Errorf("QueueDrops() = %d, want 7", got)
					break
				}
				if i == 0 {
					first <- struct{}{}
				}
			}
		})
	}
	for range cap(first) {
		labtest.Within(t, "the first answers", first)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
