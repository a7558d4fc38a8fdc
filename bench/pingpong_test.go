package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"goipip/internal/netlab"
)

// pingInterval is so long that all that a packet wakes sleeps before the next.
const pingInterval = 2 * time.Millisecond

// ping is a load of ICMP echo requests with nothing else on the way, which the
// kernel of the far host answers.
func ping(_ testing.TB, from, to *site) move {
	return func(n int, deadline time.Time) (tally, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		r, err := from.host.Ping(ctx, to.inner, netlab.PingOptions{Count: n, Interval: pingInterval})
		if errors.Is(err, context.DeadlineExceeded) {
			err = os.ErrDeadlineExceeded
		} else if err == nil && r.Received < n {
			err = fmt.Errorf("%d of %d requests were answered", r.Received, n)
		}
		return tally{rtts: r.RTTs}, err
	}
}

// player sends one UDP datagram and waits for its return.
type player struct {
	out           *net.UDPConn
	request, echo []byte
	n             uint64 // of round trips so far
}

// pingPong is a load of one datagram with size bytes of payload, which goes back
// and forth.
func pingPong(size int) opener {
	return func(tb testing.TB, from, to *site) move {
		tb.Helper()
		p := &player{request: make([]byte, size), echo: make([]byte, size+1)}
		var in *net.UDPConn
		p.out, in = openDatagrams(tb, from, to)
		ended := make(chan error, 1)
		go func() { ended <- echo(in, size) }()
		tb.Cleanup(func() {
			in.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				tb.Error(err)
			}
		})
		return p.move
	}
}

// echo returns each datagram to where it came from, until the socket is closed.
func echo(in *net.UDPConn, size int) error {
	buf := make([]byte, size+1)
	for {
		n, from, err := in.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("receive a request: %w", err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if _, err := in.WriteToUDPAddrPort(buf[:n], from); err != nil {
			return fmt.Errorf("answer a request: %w", err)
		}
	}
}

// move makes n round trips.
func (p *player) move(n int, deadline time.Time) (tally, error) {
	t := tally{rtts: make([]time.Duration, 0, n)}
	if err := p.out.SetDeadline(deadline); err != nil {
		return t, err
	}
	for range n {
		rtt, err := p.roundTrip()
		if err != nil {
			return t, fmt.Errorf("round trip %d of %d: %w", len(t.rtts)+1, n, err)
		}
		t.rtts = append(t.rtts, rtt)
	}
	return t, nil
}

func (p *player) roundTrip() (time.Duration, error) {
	p.n++
	binary.BigEndian.PutUint64(p.request, p.n)
	start := time.Now()
	if _, err := p.out.Write(p.request); err != nil {
		return 0, err
	}
	n, err := p.out.Read(p.echo)
	rtt := time.Since(start)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(p.echo[:n], p.request) {
		return 0, errors.New("the answer is not what was sent")
	}
	return rtt, nil
}
