package rawsock_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/rawsock"
)

// guard is a Guard for one pair.
type guard struct {
	*rawsock.Guard
	cfg config
}

func (g *guard) Connect() error { return g.Guard.Connect(g.cfg.pair(), g.cfg.route()) }

// newGuard opens a guard on h, and closes it when the test ends.
func newGuard(t testing.TB, h *netlab.Host, cfg config) *guard {
	t.Helper()
	g := &guard{cfg: cfg}
	must(t, h.Do(func() (err error) {
		g.Guard, err = rawsock.NewGuard()
		return err
	}))
	t.Cleanup(func() { g.Close() })
	return g
}

func newConnectedGuard(t testing.TB, h *netlab.Host, cfg config) *guard {
	t.Helper()
	g := newGuard(t, h, cfg)
	must(t, g.Connect())
	return g
}

// A receiver whose buffer is the limit lets the kernel answer, when that is full, that
// there is no such protocol here; with a guard it does not.
func TestHazard11_OverloadIsSilent(t *testing.T) {
	defer rawsock.WithoutCredit()()
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprint("guarded=", guarded), func(t *testing.T) {
			left, right := newPair(t)
			r := newConnected(t, right, rightEnd)
			if guarded {
				newConnectedGuard(t, right, rightEnd)
				// With ICMP errors about its packets, too.
				icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 3, about: rightEnd}.sendMany(t, right, left, 1000)
			}
			before := icmpSent(t, right)
			flood(t, newSender(t, left, leftEnd), 12000)
			if r.drops() == 0 {
				t.Fatal("no overload: the test tests nothing")
			}
			if sent := icmpSent(t, right) - before; guarded && sent != 0 || !guarded && sent == 0 {
				t.Errorf("the kernel has sent %d ICMP errors", sent)
			}
		})
	}
}

// A guard keeps no packet, connected or not, whenever it came.
func TestHazard11_GuardKeepsNothing(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	flooded := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			for range 8 {
				s.Add(outer(leftEnd, 10), make([]byte, 10))
			}
			err = s.Flush()
		}
		flooded <- err
	}()
	for i := range 300 {
		g := newGuard(t, right, rightEnd)
		if i%2 == 0 {
			must(t, g.Connect())
		}
		if g.Poll()&unix.POLLIN != 0 {
			t.Error("the guard has a packet")
		}
		must(t, g.Close())
	}
	must(t, s.Close())
	if err := labtest.Within(t, "the end of the flood", flooded); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestGuard_Device(t *testing.T) {
	left, _ := newPair(t)
	g := newConnectedGuard(t, left, leftEnd)
	g.cfg.Device = noSuchDevice
	if err := g.Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("Connect by no device: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
}

func TestGuard_Closed(t *testing.T) {
	left, _ := newPair(t)
	for _, connected := range []bool{false, true} {
		g := newGuard(t, left, leftEnd)
		if connected {
			must(t, g.Connect())
		}
		must(t, g.Close())
		if err := g.Connect(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Connect: %v, want %v", err, os.ErrClosed)
		}
		if err := g.Close(); err != nil {
			t.Errorf("another Close: %v", err)
		}
	}
}
