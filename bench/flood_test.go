package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
)

// datagramFlood is UDP as fast as one sender can, which is faster than any tunnel.
type datagramFlood struct {
	out, in  *net.UDPConn
	datagram []byte
	buf      []byte
	piece    uint32 // the current one, so that late datagrams of the last do not count
}

// offEnd is where a datagram says whether its piece is at its end, behind the
// number of the piece.
const offEnd = 4

// endInterval lies between two datagrams that tell the receiver of the end. Most
// of them are lost while the queues are full.
const endInterval = time.Millisecond

// flood is a load of datagrams with size bytes of payload.
func flood(size int) opener {
	return func(tb testing.TB, from, to *site) move {
		tb.Helper()
		f := &datagramFlood{datagram: make([]byte, size), buf: make([]byte, size+1)}
		f.out, f.in = openDatagrams(tb, from, to)
		return f.move
	}
}

// move sends n datagrams and counts those that arrive.
func (f *datagramFlood) move(n int, deadline time.Time) (tally, error) {
	f.piece++
	if err := errors.Join(f.in.SetReadDeadline(deadline), f.out.SetWriteDeadline(deadline)); err != nil {
		return tally{}, err
	}
	t := tally{sent: n}
	received := make(chan error)
	go func() {
		var err error
		t.received, err = f.receive()
		received <- err
	}()
	err := f.send(n, received)
	t.bytes = t.received * len(f.datagram)
	if err != nil {
		return t, fmt.Errorf("send %d datagrams, of which %d arrived: %w", n, t.received, err)
	}
	if t.received == 0 {
		return t, fmt.Errorf("none of %d datagrams arrived", n)
	}
	return t, nil
}

// send sends n datagrams, and ends of the piece until the receiver is done.
func (f *datagramFlood) send(n int, received <-chan error) error {
	binary.BigEndian.PutUint32(f.datagram, f.piece)
	f.datagram[offEnd] = 0
	for range n {
		if _, err := f.out.Write(f.datagram); err != nil {
			return f.stop(err, received)
		}
	}
	f.datagram[offEnd] = 1
	tick := time.NewTicker(endInterval)
	defer tick.Stop()
	for {
		if _, err := f.out.Write(f.datagram); err != nil {
			return f.stop(err, received)
		}
		select {
		case err := <-received:
			return err
		case <-tick.C:
		}
	}
}

// stop ends the receiver after an error of the sender.
func (f *datagramFlood) stop(err error, received <-chan error) error {
	f.in.SetReadDeadline(time.Now())
	<-received
	return err
}

// receive counts the datagrams of this piece until its end.
func (f *datagramFlood) receive() (n int, err error) {
	for {
		size, err := f.in.Read(f.buf)
		switch {
		case err != nil:
			return n, err
		case size != len(f.datagram):
			return n, fmt.Errorf("a datagram of %d bytes arrived, want %d", size, len(f.datagram))
		case binary.BigEndian.Uint32(f.buf) != f.piece:
		case f.buf[offEnd] == 1:
			return n, nil
		default:
			n++
		}
	}
}
