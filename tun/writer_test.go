package tun_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

// A packet of any number of parts is written as one message.
func TestQueue_WriteGathers(t *testing.T) {
	long := randomBytes(rand.New(rand.NewPCG(5, 6)), 60000)
	tests := []struct {
		name  string
		parts [][]byte
	}{
		{"one", [][]byte{[]byte("packet")}},
		{"header and payload", [][]byte{[]byte("head"), []byte("er and payload")}},
		{"empty ones between", [][]byte{{}, []byte("a"), nil, []byte("b"), {}}},
		{"a superpacket of segments", slices.Collect(slices.Chunk(long, 1428))},
		{"more than a batch", slices.Collect(slices.Chunk(long, 100))},
		{"one again", [][]byte{[]byte("packet")}},
	}
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, peer := newQueue(t, vnet)
		buf := make([]byte, 1<<16)
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				hdr := packet.VNetHdr{}
				if vnet {
					hdr = everyField
				}
				if err := write(q, hdr, tt.parts); err != nil {
					t.Fatal(err)
				}
				n, err := unix.Read(peer, buf)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf[:n], message(hdr, vnet, bytes.Join(tt.parts, nil))) {
					t.Errorf("wrote %d bytes, but not the header and the joined parts", n)
				}
				if n, err := unix.Read(peer, buf); err != unix.EAGAIN {
					t.Errorf("one more message of %d bytes (%v)", n, err)
				}
			})
		}
	})
}

// A packet that the kernel refuses is lost, and the next one passes.
func TestQueue_WriteRefused(t *testing.T) {
	q, _, peer := newQueue(t, false)
	tooMany := make([][]byte, 1025) // UIO_MAXIOV is 1024
	if err := write(q, packet.VNetHdr{}, tooMany); !errors.Is(err, tun.ErrRefused) {
		t.Errorf("Write of %d parts: %v, want %v", len(tooMany), err, tun.ErrRefused)
	}
	if err := write(q, packet.VNetHdr{}, [][]byte{[]byte("next")}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := unix.Read(peer, buf); err != nil || string(buf[:n]) != "next" {
		t.Errorf("then read %q, %v", buf[:max(n, 0)], err)
	}
}

// fill writes until the socket is full.
func fill(t *testing.T, file *os.File) {
	t.Helper()
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for err == nil {
			_, err = unix.Write(int(fd), []byte("filling"))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
}

// A packet for which there is no room is lost at once.
func TestQueue_WriteNeverWaits(t *testing.T) {
	q, file, peer := newQueue(t, false)
	fill(t, file)
	w := tun.NewWriter()
	for range 3 {
		if err := w.Write(q, packet.VNetHdr{}, [][]byte{[]byte("la"), []byte("te")}); !errors.Is(err, tun.ErrNoMemory) {
			t.Errorf("Write to a full socket: %v, want %v", err, tun.ErrNoMemory)
		}
	}
	buf := make([]byte, 16)
	for {
		n, err := unix.Read(peer, buf)
		if err == unix.EAGAIN {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); got != "filling" {
			t.Errorf("read %q", got)
		}
	}
	if err := w.Write(q, packet.VNetHdr{}, [][]byte{[]byte("next")}); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(peer, buf); err != nil || string(buf[:n]) != "next" {
		t.Errorf("then read %q, %v", buf[:max(n, 0)], err)
	}
}

// Several Writers write to one queue at once, and their packets stay whole.
func TestWriter_ShareQueue(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, peer := newQueue(t, vnet)
		writers := []*tun.Writer{tun.NewWriter(), tun.NewWriter(), tun.NewWriter()}
		const each = 500
		var wg sync.WaitGroup
		for i, w := range writers {
			wg.Go(func() {
				for n := range each {
					hdr, number := writerHdr(vnet, i, n), fmt.Appendf(nil, "%d/%d", i, n)
					err := w.Write(q, hdr, [][]byte{number, []byte(" is "), number})
					for errors.Is(err, tun.ErrNoMemory) && t.Context().Err() == nil { // the socket is full
						runtime.Gosched()
						err = w.Write(q, hdr, [][]byte{number, []byte(" is "), number})
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		got := map[string]int{}
		buf := make([]byte, 64)
		for range each * len(writers) {
			labtest.WaitFor(t, "a packet", func() bool {
				n, err := unix.Read(peer, buf)
				got[string(buf[:max(n, 0)])]++
				return err == nil
			})
		}
		delete(got, "") // there was nothing to read yet
		wg.Wait()
		for i := range writers {
			for n := range each {
				want := message(writerHdr(vnet, i, n), vnet, fmt.Appendf(nil, "%d/%d is %d/%d", i, n, i, n))
				if got[string(want)] != 1 {
					t.Fatalf("packet %d of writer %d came %d times", n, i, got[string(want)])
				}
			}
		}
	})
}

// writerHdr returns a header that belongs to packet n of writer i.
func writerHdr(vnet bool, i, n int) (hdr packet.VNetHdr) {
	if vnet {
		hdr = packet.VNetHdr{HdrLen: uint16(i), GSOSize: uint16(n)}
	}
	return hdr
}
