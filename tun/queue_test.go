package tun_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"goipip/internal/packet"
	"goipip/tun"
)

// Queues on a pair of sockets in place of a device.

// newQueue returns a queue on a socket, and the descriptor of the other end.
func newQueue(t testing.TB, vnet bool) (*tun.Queue, *os.File, int) {
	t.Helper()
	file, peer := socketpair(t)
	q, err := tun.NewQueue(file, vnet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	endAfter(t, func() { q.Close() })
	if q.VNet() != vnet {
		t.Fatalf("VNet() = %v, want %v", q.VNet(), vnet)
	}
	return q, file, peer
}

func mustWrite(t testing.TB, fd int, b []byte) {
	t.Helper()
	if _, err := unix.Write(fd, b); err != nil {
		t.Fatal(err)
	}
}

// message returns payload as a read from a TUN returns it, behind hdr if vnet.
func message(hdr packet.VNetHdr, vnet bool, payload []byte) []byte {
	if !vnet {
		return payload
	}
	b := make([]byte, packet.VNetHdrLen)
	hdr.Encode(b)
	return append(b, payload...)
}

// everyField is a header whose fields are all different, and none is zero.
var everyField = packet.VNetHdr{Flags: 1, GSOType: 2, HdrLen: 0x0304, GSOSize: 0x0506, CsumStart: 0x0708, CsumOffset: 0x090a}

// bothKinds runs a test for a plain queue and for one with the virtio-net header.
func bothKinds(t *testing.T, f func(t *testing.T, vnet bool)) {
	for _, vnet := range []bool{false, true} {
		t.Run(fmt.Sprintf("vnet=%v", vnet), func(t *testing.T) { f(t, vnet) })
	}
}

// writeAll writes messages until the socket's buffer is full, and returns how many it
// wrote.
func writeAll(t *testing.T, peer int, messages [][]byte) int {
	t.Helper()
	for i, m := range messages {
		if _, err := unix.Write(peer, m); err == unix.EAGAIN {
			return i
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return len(messages)
}

// One Read returns everything that is there, each packet whole, in order, with
// its header, and in memory of its own.
func TestQueue_ReadBatch(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, peer := newQueue(t, vnet)
		r := tun.NewReader()
		rng := rand.New(rand.NewPCG(1, 2))
		done := 0
		for _, n := range []int{1, 2, tun.BatchSize - 1, tun.BatchSize, tun.BatchSize + 1, 1, 2*tun.BatchSize + 3} {
			var want, messages [][]byte
			for i := range n {
				hdr := everyField
				hdr.GSOSize = uint16(done + i)
				want = append(want, randomBytes(rng, 1+rng.IntN(600)))
				messages = append(messages, message(hdr, vnet, want[i]))
			}
			if taken := writeAll(t, peer, messages); taken != n {
				t.Fatalf("the socket takes %d of %d messages", taken, n)
			}
			for len(want) > 0 {
				packets, err := read(r, q)
				if err != nil {
					t.Fatal(err)
				}
				if all := min(len(want), tun.BatchSize); len(packets) != all {
					t.Fatalf("Read returned %d packets, and there were %d", len(packets), all)
				}
				checkBatch(t, packets, want[:len(packets)], vnet, done)
				want = want[len(packets):]
				done += len(packets)
			}
		}
	})
}

// One Read returns a full batch of packets of Ethernet's size.
func TestQueue_ReadEthernet(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, peer := newQueue(t, vnet)
		r := tun.NewReader()
		full := message(everyField, vnet, make([]byte, 1500))
		for range tun.BatchSize {
			mustWrite(t, peer, full)
		}
		packets, err := read(r, q)
		if err != nil || len(packets) != tun.BatchSize {
			t.Errorf("Read: %d packets, %v, want %d", len(packets), err, tun.BatchSize)
		}
	})
}

// checkBatch checks packets, which are numbered from first on, and overwrites each, which
// must not change the others.
func checkBatch(t *testing.T, packets []tun.Packet, want [][]byte, vnet bool, first int) {
	t.Helper()
	for i, p := range packets {
		if !bytes.Equal(p.Bytes, want[i]) {
			t.Fatalf("packet %d of a batch of %d is not what was written", i, len(packets))
		}
		hdr := packet.VNetHdr{}
		if vnet {
			hdr = everyField
			hdr.GSOSize = uint16(first + i)
		}
		if diff := cmp.Diff(hdr, p.VNet); diff != "" {
			t.Errorf("header (-want +got):\n%s", diff)
		}
		clear(p.Bytes)
		if extra := cap(p.Bytes) - len(p.Bytes); extra != 0 {
			t.Errorf("packet %d can grow by %d bytes, into the next one", i, extra)
		}
	}
}

// The largest packets leave room for few others, and none is truncated.
func TestQueue_ReadLargest(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, peer := newQueue(t, vnet)
		r := tun.NewReader()
		rng := rand.New(rand.NewPCG(3, 4))
		want := [][]byte{randomBytes(rng, packet.IPv4MaxLen), {1}, randomBytes(rng, packet.IPv4MaxLen), {2}, {3}}
		var messages [][]byte
		for _, p := range want {
			messages = append(messages, message(everyField, vnet, p))
		}
		if n := writeAll(t, peer, messages); n != len(messages) {
			t.Fatalf("the socket takes %d messages", n)
		}
		for len(want) > 0 {
			packets, err := read(r, q)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range packets {
				if !bytes.Equal(p.Bytes, want[i]) {
					t.Fatalf("%d bytes in place of %d, or others", len(p.Bytes), len(want[i]))
				}
			}
			want = want[len(packets):]
		}
	})
}

// Packets stay unchanged until Reset, even when more arrive.
func TestQueue_ReadValidUntilNext(t *testing.T) {
	q, _, peer := newQueue(t, true)
	r := tun.NewReader()
	mustWrite(t, peer, message(packet.VNetHdr{}, true, []byte("first")))
	packets, err := read(r, q)
	if err != nil || len(packets) != 1 {
		t.Fatalf("Read: %d packets, %v", len(packets), err)
	}
	mustWrite(t, peer, message(packet.VNetHdr{}, true, []byte("other")))
	if got := string(packets[0].Bytes); got != "first" {
		t.Errorf("packet became %q", got)
	}
}

// A message shorter than the header is skipped, and the next packet is read.
func TestQueue_ReadShort(t *testing.T) {
	q, _, peer := newQueue(t, true)
	r := tun.NewReader()
	mustWrite(t, peer, make([]byte, packet.VNetHdrLen-1))
	mustWrite(t, peer, message(everyField, true, []byte("next")))
	packets, err := read(r, q)
	if err != nil {
		t.Fatal(err)
	}
	if len(packets) != 1 || string(packets[0].Bytes) != "next" || packets[0].VNet != everyField {
		t.Errorf("Read: %+v, want just the packet after it", packets)
	}
}

func TestQueue_ReadWaits(t *testing.T) {
	q, _, peer := newQueue(t, false)
	r := startReading(q)
	for _, want := range []string{"one", "two"} {
		waitParked(t, 1)
		mustWrite(t, peer, []byte(want))
		if got := string(r.next(t).Bytes); got != want {
			t.Errorf("Read %q, want %q", got, want)
		}
	}
}

func TestQueue_ClosedWhileReading(t *testing.T) {
	q, _, _ := newQueue(t, true)
	r := startReading(q)
	waitParked(t, 1)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v, want %v", err, os.ErrClosed)
	}
	if _, err := read(tun.NewReader(), q); !errors.Is(err, os.ErrClosed) {
		t.Errorf("another Read: %v, want %v", err, os.ErrClosed)
	}
	if err := write(q, packet.VNetHdr{}, [][]byte{{1}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write: %v, want %v", err, os.ErrClosed)
	}
}

// An unexpected error is returned.
func TestQueue_ReadError(t *testing.T) {
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := tun.NewQueue(f, true)
	if err != nil {
		t.Fatal(err)
	}
	if packets, err := read(tun.NewReader(), q); !errors.Is(err, unix.EBADF) || len(packets) != 0 {
		t.Errorf("Read: %d packets, %v, want %v", len(packets), err, unix.EBADF)
	}
}
