package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/packet"
)

// flow is UDP from one site to another, at any rate. Its system calls take many
// datagrams each, because it shares the machine with what it measures.
type flow struct {
	out, in  *net.UDPConn
	sending  batch // from out; all of one datagram
	taking   batch // to in
	datagram []byte
	run      uint32 // the current one, so that late datagrams of the last do not count
}

// batch is messages for one system call, sendmmsg(2) or recvmmsg(2).
type batch struct {
	conn *ipv4.PacketConn
	msgs []ipv4.Message
}

const (
	sendBatch = 64
	takeBatch = 128
)

// passage is what came of one run of a flow.
type passage struct {
	sent, received int
	took           time.Duration // to send
}

// loss returns the part of what was sent that did not arrive.
func (p passage) loss() float64 { return float64(p.sent-p.received) / float64(p.sent) }

// rate returns how many datagrams arrived for each second of sending.
func (p passage) rate() float64 { return float64(p.received) / p.took.Seconds() }

// unpaced is the rate of a flow that sends what it can, which is more than any
// tunnel takes.
var unpaced = math.Inf(1)

// pause lies between two looks at what a flow has to send by now. The kernel adds
// about 50 µs (prctl(2), PR_SET_TIMERSLACK).
const pause = 150 * time.Microsecond

// offEnd is where a datagram says whether its run is at its end, behind the number
// of the run.
const offEnd = 4

// endInterval lies between two datagrams that tell the receiver of the end. Most
// of them are lost while the queues are full.
const endInterval = time.Millisecond

const udpHdrLen = 8 // RFC 768

// openFlow opens a flow of IPv4 packets of size bytes.
func openFlow(tb testing.TB, from, to *site, size int) *flow {
	tb.Helper()
	f := &flow{datagram: make([]byte, size-packet.IPv4HdrLen-udpHdrLen)}
	f.out, f.in = openDatagrams(tb, from, to)
	f.sending = batch{ipv4.NewPacketConn(f.out), make([]ipv4.Message, sendBatch)}
	for i := range f.sending.msgs {
		f.sending.msgs[i].Buffers = [][]byte{f.datagram}
	}
	f.taking = batch{ipv4.NewPacketConn(f.in), make([]ipv4.Message, takeBatch)}
	for i := range f.taking.msgs {
		f.taking.msgs[i].Buffers = [][]byte{make([]byte, len(f.datagram)+1)}
	}
	return f
}

// pass sends so many datagrams a second for some time, and counts those that
// arrive.
func (f *flow) pass(rate float64, length time.Duration, deadline time.Time) (passage, error) {
	f.run++
	if err := errors.Join(f.in.SetReadDeadline(deadline), f.out.SetWriteDeadline(deadline)); err != nil {
		return passage{}, err
	}
	var p passage
	taken := make(chan error)
	go func() {
		var err error
		p.received, err = f.take()
		taken <- err
	}()
	binary.BigEndian.PutUint32(f.datagram, f.run)
	f.datagram[offEnd] = 0
	start := time.Now()
	sent, err := f.send(rate, length)
	took := time.Since(start)
	if err == nil {
		err = f.end(taken)
	} else {
		f.in.SetReadDeadline(time.Now())
		<-taken
	}
	p.sent, p.took = sent, took
	if err != nil {
		return p, fmt.Errorf("send %d datagrams, of which %d arrived: %w", p.sent, p.received, err)
	}
	return p, nil
}

// send sends what is due by now, until length is over.
func (f *flow) send(rate float64, length time.Duration) (sent int, err error) {
	for start := time.Now(); ; {
		elapsed := time.Since(start)
		if elapsed >= length {
			return sent, nil
		}
		due := min(rate*elapsed.Seconds()-float64(sent), sendBatch)
		if due < 1 {
			// time.Sleep rounds up to a millisecond where the runtime has nothing else
			// to do.
			ts := unix.NsecToTimespec(int64(pause))
			_ = unix.Nanosleep(&ts, nil)
			continue
		}
		n, err := f.sending.conn.WriteBatch(f.sending.msgs[:int(due)], 0)
		if err != nil {
			return sent, err
		}
		sent += n
	}
}

// end tells the receiver that nothing more will come, until it is done.
func (f *flow) end(taken <-chan error) error {
	f.datagram[offEnd] = 1
	tick := time.NewTicker(endInterval)
	defer tick.Stop()
	for {
		if _, err := f.out.Write(f.datagram); err != nil {
			f.in.SetReadDeadline(time.Now())
			<-taken
			return err
		}
		select {
		case err := <-taken:
			return err
		case <-tick.C:
		}
	}
}

// take counts the datagrams of this run until its end.
func (f *flow) take() (received int, err error) {
	for {
		n, err := f.taking.conn.ReadBatch(f.taking.msgs, 0)
		if err != nil {
			return received, err
		}
		for _, m := range f.taking.msgs[:n] {
			datagram := m.Buffers[0][:m.N]
			switch {
			case m.N != len(f.datagram):
				return received, fmt.Errorf("a datagram of %d bytes arrived, want %d", m.N, len(f.datagram))
			case binary.BigEndian.Uint32(datagram) != f.run:
			case datagram[offEnd] == 1:
				return received, nil
			default:
				received++
			}
		}
	}
}
