package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chunkSize is the unit in which streams share a piece, in bytes.
const chunkSize = 128 << 10

// openTimeout bounds the opening of one connection.
const openTimeout = 10 * time.Second

// stream is one TCP connection.
type stream struct {
	out, in  *net.TCPConn
	from, to []byte // chunkSize each
}

// streams is a load of n TCP connections, which share a piece as they get on: a
// faster one carries more of it. The congestion control is named because the
// machine's own choice may be any, and figures differ by it more than by much
// else.
func streams(n int, congestionControl string) opener {
	return func(tb testing.TB, from, to *site) move {
		tb.Helper()
		all := make([]*stream, n)
		for i := range all {
			all[i] = openStream(tb, from, to, congestionControl)
		}
		return func(size int, deadline time.Time) (tally, error) {
			return moveStreams(all, size, deadline)
		}
	}
}

func openStream(tb testing.TB, from, to *site, congestionControl string) *stream {
	tb.Helper()
	s := &stream{from: make([]byte, chunkSize), to: make([]byte, chunkSize)}
	var listener *net.TCPListener
	if err := to.host.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: to.inner.AsSlice()})
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	defer listener.Close()
	err := from.host.Do(func() error {
		dialer := net.Dialer{Timeout: openTimeout, Control: setCongestionControl(congestionControl)}
		conn, err := dialer.Dial("tcp4", listener.Addr().String())
		if err == nil {
			s.out = conn.(*net.TCPConn)
		}
		return err
	})
	if errors.Is(err, errNoCongestionControl) {
		tb.Skip(err)
	} else if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.out.Close() })
	if err := listener.SetDeadline(time.Now().Add(openTimeout)); err != nil {
		tb.Fatal(err)
	}
	if s.in, err = listener.AcceptTCP(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.in.Close() })
	return s
}

var errNoCongestionControl = errors.New("the kernel has no such congestion control")

// setCongestionControl is for new sockets: bbr leaves pacing behind on one that
// was connected with it.
func setCongestionControl(name string) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
		})
		if errors.Is(err, unix.ENOENT) {
			err = errNoCongestionControl
		}
		if err != nil {
			err = fmt.Errorf("setsockopt TCP_CONGESTION %s: %w", name, err)
		}
		return errors.Join(ctlErr, err)
	}
}

// moveStreams moves size bytes, a multiple of chunkSize.
func moveStreams(all []*stream, size int, deadline time.Time) (tally, error) {
	var (
		unsent  atomic.Int64 // chunks that no stream has taken yet
		arrived atomic.Int64 // bytes
		errs    = make([]error, 2*len(all))
		wg      sync.WaitGroup
	)
	unsent.Store(int64(size / chunkSize))
	for i, s := range all {
		// Receiver and sender agree by it on what is on the way.
		sent := make(chan struct{}, size/chunkSize)
		wg.Go(func() { errs[2*i] = s.send(&unsent, sent, deadline) })
		wg.Go(func() { errs[2*i+1] = s.receive(sent, &arrived, deadline) })
	}
	wg.Wait()
	t := tally{bytes: int(arrived.Load())}
	if err := errors.Join(errs...); err != nil {
		return t, fmt.Errorf("move %d bytes by %d streams, of which %d arrived: %w", size, len(all), t.bytes, err)
	}
	if t.bytes != size {
		return t, fmt.Errorf("%d bytes arrived, want %d", t.bytes, size)
	}
	return t, nil
}

// send writes chunks as long as there are unsent ones, and announces each.
func (s *stream) send(unsent *atomic.Int64, sent chan<- struct{}, deadline time.Time) error {
	defer close(sent)
	if err := s.out.SetWriteDeadline(deadline); err != nil {
		return err
	}
	for unsent.Add(-1) >= 0 {
		sent <- struct{}{}
		if _, err := s.out.Write(s.from); err != nil {
			return err
		}
	}
	return nil
}

// receive reads each announced chunk to its end.
func (s *stream) receive(sent <-chan struct{}, arrived *atomic.Int64, deadline time.Time) error {
	if err := s.in.SetReadDeadline(deadline); err != nil {
		return err
	}
	for range sent {
		n, err := io.ReadFull(s.in, s.to)
		arrived.Add(int64(n))
		if err != nil {
			return err
		}
	}
	return nil
}
