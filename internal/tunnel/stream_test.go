package tunnel_test

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/tunnel"
)

// stream is a TCP connection that carries data until finish.
type stream struct {
	out, in  net.Conn
	received atomic.Int64  // bytes
	stall    time.Duration // the longest time without data
	ended    atomic.Bool

	sums [2]hash.Hash // of what was sent and received
	errs chan error
}

// streamRate is enough to fill a window, and little enough to be captured, in
// bytes a second.
const streamRate = 4 << 20

func startStream(t testing.TB, from, to *site) *stream {
	t.Helper()
	s := &stream{sums: [2]hash.Hash{sha256.New(), sha256.New()}, errs: make(chan error, 2)}
	var l net.Listener
	must(t,
		to.host.Do(func() (err error) {
			l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.inner, 0)))
			return err
		}),
		from.host.Do(func() (err error) {
			s.out, err = net.DialTimeout("tcp4", l.Addr().String(), 10*time.Second)
			return err
		}))
	defer l.Close()
	var err error
	s.in, err = l.Accept()
	must(t, err)
	t.Cleanup(func() {
		s.out.Close()
		s.in.Close()
	})
	raw, err := s.out.(*net.TCPConn).SyscallConn()
	must(t, err, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, streamRate)
	}))
	must(t, err, s.in.SetReadDeadline(time.Now().Add(time.Minute)))
	go s.send()
	go s.receive()
	return s
}

func (s *stream) send() {
	random := rand.NewChaCha8([32]byte{})
	buf := make([]byte, 16<<10)
	for !s.ended.Load() {
		random.Read(buf)
		n, err := s.out.Write(buf)
		s.sums[0].Write(buf[:n])
		if err != nil {
			s.errs <- err
			return
		}
	}
	s.errs <- s.out.(*net.TCPConn).CloseWrite()
}

func (s *stream) receive() {
	buf := make([]byte, 64<<10)
	last := time.Now()
	for {
		n, err := s.in.Read(buf)
		s.stall = max(s.stall, time.Since(last))
		last = time.Now()
		s.sums[1].Write(buf[:n])
		s.received.Add(int64(n))
		if errors.Is(err, io.EOF) {
			s.errs <- nil
			return
		}
		if err != nil {
			s.errs <- err
			return
		}
	}
}

// carries returns when n more bytes have arrived.
func (s *stream) carries(t testing.TB, n int64) {
	t.Helper()
	until := s.received.Load() + n
	labtest.WaitFor(t, "data to arrive", func() bool { return s.received.Load() >= until })
}

// finish fails the test unless all that was sent has arrived, and without a stall
// longer than a few retransmission timeouts.
func (s *stream) finish(t testing.TB, longest time.Duration) {
	t.Helper()
	s.ended.Store(true)
	for range 2 {
		select {
		case err := <-s.errs:
			must(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("the stream does not end")
		}
	}
	if [32]byte(s.sums[0].Sum(nil)) != [32]byte(s.sums[1].Sum(nil)) {
		t.Error("what arrived is not what was sent")
	}
	if s.stall > longest {
		t.Errorf("nothing arrived for %v", s.stall)
	}
	t.Logf("%d KiB, the longest stall was %v", s.received.Load()>>10, s.stall)
}

// Connections in both directions go on while the path shrinks, and use all of it
// again when it has grown and the kernel has forgotten (TestT7_Expires).
func TestT7_TCPGoesOn(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*tunnel.Config){
		"default": nil,
		// DF comes from the senders.
		"offload off, queues 2, nopmtudisc": func(c *tunnel.Config) { c.NoOffload, c.Queues, c.NoPMTUDisc = true, 2, true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, change)
			streams := []*stream{startStream(t, n.a, n.b), startStream(t, n.b, n.a)}
			for _, mtu := range []int{1500, 1400, 600} {
				n.shrink(t, mtu)
				for _, s := range streams {
					s.carries(t, streamRate/8)
				}
			}
			n.shrink(t, 1500)
			captures := []*netlab.Capture{capture(t, n.r1, "a0"), capture(t, n.r2, "b0")}
			labtest.WaitFor(t, "packets as long as before", func() bool {
				for i, end := range n.directions() {
					// Again and again, as long as a tunnel has not noticed and tells TCP of the past.
					must(t, end[0].host.Sysctl("net.ipv4.route.flush", "1"))
					if !slices.ContainsFunc(end[0].outerPackets(captures[i]), func(p packet.IPv4) bool { return len(p) >= 1500 }) {
						return false
					}
				}
				return true
			})
			for _, c := range captures {
				must(t, c.Close())
			}
			for _, s := range streams {
				s.finish(t, 3*time.Second)
			}
			n.balance(t)
		})
	}
}

// The same without help: what the kernels and the tunnel know of the path ends by
// itself, and connections use all of it again, of a sender here and of one behind.
func TestT7_TCPRecovers(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	client := n.client(t)
	for _, s := range []*site{client, n.a, n.b} {
		must(t, s.host.Sysctl("net.ipv4.route.mtu_expires", "2"))
	}
	streams := []*stream{startStream(t, n.a, n.b), startStream(t, client, n.b)}
	for _, mtu := range []int{1400, 600} {
		n.shrink(t, mtu)
		for _, s := range streams {
			s.carries(t, streamRate/8)
		}
	}
	n.shrink(t, 1500)
	wire := capture(t, n.r1, "a0")
	long := func(from *site) bool {
		return slices.ContainsFunc(n.a.outerPackets(wire), func(p packet.IPv4) bool {
			return len(p) >= 1500 && packet.IPv4(p.Payload()).Source() == from.inner.As4()
		})
	}
	labtest.WaitFor(t, "packets as long as before", func() bool { return long(n.a) && long(client) })
	must(t, wire.Close())
	for _, s := range streams {
		s.finish(t, 3*time.Second)
	}
	n.balance(t)
}
