package tun_test

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/packet"
	"goipip/tun"
)

// Read of an empty queue returns at once.
func TestReader_NeverWaits(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, _ := newQueue(t, vnet)
		r := tun.NewReader()
		for range 3 {
			if packets, err := r.Read(q); packets != nil || err != nil {
				t.Errorf("Read: %v, %v, want nil, nil", packets, err)
			}
		}
	})
}

// Reads of different queues fill one buffer. Each returns the packets of its queue, and all
// stay unchanged until Reset.
func TestReader_ManyQueues(t *testing.T) {
	var queues []*tun.Queue
	var peers []int
	for i := range 4 {
		q, _, peer := newQueue(t, i%2 == 0)
		queues, peers = append(queues, q), append(peers, peer)
	}
	r := tun.NewReader()
	for round := range 3 {
		r.Reset()
		var got []tun.Packet
		var want []string
		for pass := range 3 {
			for i, q := range queues {
				for n := range i + pass { // the first queue is empty in the first pass
					payload := fmt.Sprintf("packet %d of queue %d, pass %d, round %d", n, i, pass, round)
					mustWrite(t, peers[i], message(everyField, q.VNet(), []byte(payload)))
					want = append(want, payload)
				}
				packets, err := r.Read(q)
				if err != nil || len(packets) != i+pass {
					t.Fatalf("Read: %d packets, %v, want %d", len(packets), err, i+pass)
				}
				if cap(packets) != len(packets) {
					t.Errorf("%d packets can grow to %d, over those of the next Read", len(packets), cap(packets))
				}
				for _, p := range packets {
					if hdr := (packet.VNetHdr{}); !q.VNet() && p.VNet != hdr || q.VNet() && p.VNet != everyField {
						t.Errorf("queue %d: header %+v", i, p.VNet)
					}
				}
				got = append(got, packets...)
			}
		}
		for i, p := range got {
			if string(p.Bytes) != want[i] {
				t.Fatalf("packet %d became %q, want %q", i, p.Bytes, want[i])
			}
		}
	}
}

// Without Room, Read takes nothing from the queue; after Reset it goes on.
func TestReader_Room(t *testing.T) {
	tests := []struct {
		name          string
		size, packets int // of packets; how many fit
	}{
		{"largest", packet.IPv4MaxLen, 4},
		{"smallest", 1, 4 * tun.BatchSize},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, _, peerA := newQueue(t, true)
			b, _, peerB := newQueue(t, true)
			r := tun.NewReader()
			msg := message(everyField, true, make([]byte, tt.size))
			read := 0
			for r.Room() {
				mustWrite(t, peerA, msg)
				mustWrite(t, peerB, msg)
				for _, q := range []*tun.Queue{a, b} {
					packets, err := r.Read(q)
					if err != nil {
						t.Fatal(err)
					}
					for _, p := range packets {
						if len(p.Bytes) != tt.size {
							t.Fatalf("packet of %d bytes, want %d", len(p.Bytes), tt.size)
						}
					}
					read += len(packets)
				}
			}
			if read != tt.packets {
				t.Errorf("read %d packets before the buffer was full, want %d", read, tt.packets)
			}
			last := message(everyField, true, []byte("last"))
			mustWrite(t, peerA, last)
			if packets, err := r.Read(a); packets != nil || err != nil {
				t.Errorf("Read without room: %d packets, %v, want nil, nil", len(packets), err)
			}
			r.Reset()
			if !r.Room() {
				t.Error("no room after Reset")
			}
			if packets, err := r.Read(a); err != nil || len(packets) != 1 || string(packets[0].Bytes) != "last" {
				t.Errorf("Read after Reset: %d packets, %v", len(packets), err)
			}
		})
	}
}

// A busy queue cannot occupy a Reader: BatchSize limits each Read, also one into a buffer
// with packets.
func TestReader_Batch(t *testing.T) {
	a, _, peerA := newQueue(t, false)
	b, _, peerB := newQueue(t, false)
	for range tun.BatchSize + 10 {
		mustWrite(t, peerA, []byte("a"))
	}
	mustWrite(t, peerB, []byte("b"))
	r := tun.NewReader()
	var got []byte
	for _, step := range []struct {
		q    *tun.Queue
		want int
	}{{b, 1}, {a, tun.BatchSize}, {b, 0}, {a, 10}} {
		packets, err := r.Read(step.q)
		if err != nil || len(packets) != step.want {
			t.Fatalf("Read: %d packets, %v, want %d", len(packets), err, step.want)
		}
		for _, p := range packets {
			got = append(got, p.Bytes...)
		}
	}
	if want := append([]byte("b"), bytes.Repeat([]byte("a"), tun.BatchSize+10)...); !bytes.Equal(got, want) {
		t.Errorf("read %q", got)
	}
}

// Reads of two queues into one buffer, an empty queue and a full buffer.
func TestReader_Allocs(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		a, _, peerA := newQueue(t, vnet)
		b, _, peerB := newQueue(t, vnet)
		in := message(everyField, vnet, make([]byte, 100))
		r := tun.NewReader()
		checkAllocs(t, func() bool {
			r.Reset()
			for range 3 {
				for n, peer := range []int{peerA, peerA, peerB} {
					if _, err := unix.Write(peer, in[:len(in)-n]); err != nil {
						return false
					}
				}
				first, err := r.Read(a)
				if err != nil || len(first) != 2 || len(first[1].Bytes) != 99 {
					return false
				}
				second, err := r.Read(b)
				if err != nil || len(second) != 1 || len(second[0].Bytes) != 98 || len(first[0].Bytes) != 100 {
					return false
				}
				if none, err := r.Read(b); len(none) != 0 || err != nil {
					return false
				}
			}
			return true
		})
		t.Run("full", func(t *testing.T) {
			checkAllocs(t, func() bool {
				read := 0
				for r.Reset(); r.Room(); {
					if _, err := unix.Write(peerA, in); err != nil {
						return false
					}
					packets, err := r.Read(a)
					if err != nil {
						return false
					}
					read += len(packets)
				}
				packets, err := r.Read(a)
				return read == 4*tun.BatchSize && len(packets) == 0 && err == nil
			})
		})
	})
}

// One Writer writes to two queues.
func TestWriter_Allocs(t *testing.T) {
	a, _, peerA := newQueue(t, true)
	b, _, peerB := newQueue(t, false)
	w := tun.NewWriter()
	parts := [][]byte{[]byte("one "), []byte("packet")}
	withHdr := message(everyField, true, []byte("one packet"))
	buf := make([]byte, 64)
	checkAllocs(t, func() bool {
		if w.Write(a, everyField, parts) != nil || w.Write(b, packet.VNetHdr{}, parts) != nil {
			return false
		}
		if n, err := unix.Read(peerA, buf); err != nil || string(buf[:n]) != string(withHdr) {
			return false
		}
		n, err := unix.Read(peerB, buf)
		return err == nil && string(buf[:n]) == "one packet"
	})
}

// Read of a full batch of packets of Ethernet's size.
func BenchmarkReader(b *testing.B) {
	q, _, peer := newQueue(b, true)
	r := tun.NewReader()
	in := message(everyField, true, make([]byte, 1480))
	packets := 0
	for b.Loop() {
		b.StopTimer()
		for range tun.BatchSize {
			mustWrite(b, peer, in)
		}
		b.StartTimer()
		r.Reset()
		got, err := r.Read(q)
		if err != nil {
			b.Fatal(err)
		}
		packets += len(got)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(packets), "ns/packet")
}
