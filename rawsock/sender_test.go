package rawsock_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// O6: packets leave by the device that was asked for, whatever the routes say.
func TestO6_Device(t *testing.T) {
	lab := labtest.New(t)
	left, right := addHost(t, lab, "left"), addHost(t, lab, "right")
	const remote = "192.168.1.129"
	must(t,
		lab.Veth(left, "eth0", right, "eth0"),
		lab.Veth(left, "eth1", right, "eth1"),
		left.AddAddr("eth0", "10.0.0.1/24"), right.AddAddr("eth0", "10.0.0.2/24"),
		left.AddAddr("eth1", "10.0.1.1/24"), right.AddAddr("eth1", "10.0.1.2/24"),
		right.AddAddr("lo", remote+"/32"),
		left.AddRoute(remote+"/32", "10.0.0.2"), // by eth0
	)
	cfg := rawsock.Config{Local: leftAddr, Remote: netip.MustParseAddr(remote)}
	g := startReceiving(newReceiver(t, right, reverse(cfg)))
	for _, device := range []string{"", "eth0", "eth1"} {
		t.Run("device="+device, func(t *testing.T) {
			expected := device
			if expected == "" {
				expected = "eth0"
			}
			capture, err := right.Capture(expected)
			must(t, err)
			payload := "by " + expected
			newSender(t, left, by(cfg, device)).mustSend(t, payload)
			g.check(t, payload)
			_, err = capture.Wait(labtest.Context(t), func(c netlab.Captured) bool {
				return string(packet.IPv4(c.Data).Payload()) == payload
			})
			must(t, err)
		})
	}
}

func TestO6_NoSuchDevice(t *testing.T) {
	left, _ := newPair(t)
	err := left.Do(func() error {
		_, err := rawsock.NewSender(by(leftEnd, "nosuch0"), nil)
		return err
	})
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("NewSender: %v, want an error about the device nosuch0", err)
	}
}

// slow puts a token bucket of rate bytes a second, at least 20000, and limit bytes
// of queue before a device; its first 70000 bytes pass at once. Called again, it
// changes the rate for what is queued.
func slow(t *testing.T, h *netlab.Host, device string, rate uint64, limit uint32) {
	t.Helper()
	l, err := h.Netlink().LinkByName(device)
	must(t, err)
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index,
			Handle:    netlink.MakeHandle(1, 0),
			Parent:    netlink.HANDLE_ROOT,
		},
		Rate:  rate,
		Limit: limit,
		// In ticks of 64 ns (PSCHED_SHIFT), at most 2³² ns: no longer packet
		// passes (tbf_change in net/sched/sch_tbf.c).
		Buffer: uint32(70000 * 1e9 / float64(rate) / 64),
	}
	must(t, h.Netlink().QdiscReplace(tbf))
}

const largeMTU = 65000

// newSlowPair returns two hosts on a cable for large packets, of which hardly any
// leave the left one until faster is called, and none is lost.
func newSlowPair(t *testing.T) (left, right *netlab.Host, faster func()) {
	t.Helper()
	left, right = newPair(t)
	must(t, left.SetMTU("eth0", largeMTU), right.SetMTU("eth0", largeMTU))
	const limit = 1 << 30
	slow(t, left, "eth0", 20000, limit)
	return left, right, func() {
		slow(t, left, "eth0", 20<<20, limit) // which a receiver keeps up with
		ping(t, left, rightAddr)             // has it look at its queue at once
	}
}

// flushUntilFull sends numbered packets of 60000 bytes, in the background, until
// Flush fails or there were count.
func flushUntilFull(s *sender, count int) <-chan error {
	done := make(chan error, 1)
	go func() {
		padding := make([]byte, 60000)
		for i := range count {
			header := append(outer(s.cfg, 4+len(padding)), fmt.Sprintf("%4d", i)...)
			s.Add(header, padding)
			if s.Len() < rawsock.BatchSize && i < count-1 {
				continue
			}
			if err := s.Flush(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// Flush waits while the socket's buffer is full, and loses nothing.
func TestFlush_Waits(t *testing.T) {
	for name, take := range roads {
		t.Run(name, func(t *testing.T) { flushWaits(t, take) })
	}
}

func flushWaits(t *testing.T, take road) {
	left, right, faster := newSlowPair(t)
	needBuffers(t, right)
	s := newSender(t, left, leftEnd)
	take(t, s, left, right)
	g := startReceiving(newConnected(t, right, rightEnd))
	// This leaves an error on the socket's error queue, which nobody takes away.
	s.send(t, strings.Repeat("x", largeMTU))
	if diff := cmp.Diff([]refusal{{0, rawsock.TooBig}}, s.refusals); diff != "" {
		t.Fatalf("refusals (-want +got):\n%s", diff)
	}
	s.refusals = nil

	const count = 300 // 20 MB of kernel memory, and the buffer holds 16
	done := flushUntilFull(s, count)
	labtest.WaitParked(t, "rawsock.(*Sender).Flush", 1)
	faster()
	must(t, labtest.Within(t, "Flush", done))
	if len(s.refusals) > 0 {
		t.Errorf("refusals: %+v", s.refusals)
	}
	for i := range count {
		p := g.next(t)
		if got, want := string(p.Payload()[:4]), fmt.Sprintf("%4d", i); got != want || len(p) != 60024 {
			t.Fatalf("received packet %s of %d bytes, want packet %s", got, len(p), want)
		}
	}
}

func TestFlush_Closed(t *testing.T) {
	for name, take := range roads {
		t.Run(name, func(t *testing.T) { flushClosed(t, take) })
	}
}

func flushClosed(t *testing.T, take road) {
	left, right, _ := newSlowPair(t)
	s := newSender(t, left, leftEnd)
	take(t, s, left, right)
	done := flushUntilFull(s, 300)
	labtest.WaitParked(t, "rawsock.(*Sender).Flush", 1)
	must(t, s.Close())
	if err := labtest.Within(t, "Flush", done); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Flush: %v, want %v", err, os.ErrClosed)
	}
	if len(s.refusals) > 0 {
		t.Errorf("refusals: %+v", s.refusals)
	}
	s.Add(outer(leftEnd, 0), nil)
	if err := s.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("another Flush: %v, want %v", err, os.ErrClosed)
	}
	if err := s.Close(); err != nil {
		t.Errorf("another Close: %v", err)
	}
}

// A full queue on the way out is noticed, though it belongs to the device and
// not to the socket: every packet either arrives or is refused.
func TestCongested(t *testing.T) {
	for name, take := range roads {
		t.Run(name, func(t *testing.T) { congested(t, take) })
	}
}

func congested(t *testing.T, take road) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	take(t, s, left, right)
	g := startReceiving(newConnected(t, right, rightEnd))
	const size = 1000
	slow(t, left, "eth0", 1<<20, 5*size)
	const batches = 10
	var want []string
	for batch := range batches {
		s.refusals = nil
		var payloads []string
		for i := range rawsock.BatchSize {
			payloads = append(payloads, fmt.Sprintf("%3d %2d %*s", batch, i, size, ""))
		}
		s.send(t, payloads...)
		refused := map[int]bool{}
		for _, r := range s.refusals {
			if r.Why != rawsock.Congested || refused[r.Index] {
				t.Fatalf("batch %d: refusals %+v, want %v, and each once", batch, s.refusals, rawsock.Congested)
			}
			refused[r.Index] = true
		}
		for i, p := range payloads {
			if !refused[i] {
				want = append(want, p)
			}
		}
	}
	if sent := len(want); sent == 0 || sent == batches*rawsock.BatchSize {
		t.Fatalf("%d of %d packets were sent, want some, and not all", sent, batches*rawsock.BatchSize)
	}
	g.check(t, want...)
	// By now the queue is empty, so this one passes.
	s.refusals = nil
	s.mustSend(t, "end")
	g.check(t, "end")
}
