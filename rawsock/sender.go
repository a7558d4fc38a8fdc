package rawsock

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"goipip/internal/descriptor"
	"goipip/internal/stats"

	"golang.org/x/sys/unix"
)

// Sender sends packets in batches. One goroutine at a time may use it.
type Sender struct {
	raw    *descriptor.FD
	packet *descriptor.FD // nil without hops

	maxWait time.Duration // const, but for tests

	batch   batch
	slots   [BatchSize]slot
	n       int // messages added
	refused func(i int, why stats.Reason)
}

// slot is the place of a message in the batch.
type slot struct {
	to *Target
	// at is what the message is addressed to, and out the socket for that. They stay
	// after Flush, since the next message here is often for the same Target.
	at  *destination
	out *descriptor.FD // nil without a destination
}

// maxWait is how long one Flush waits for room in a socket's buffer.
const maxWait = 10 * time.Millisecond

// NewSender opens a sender in the network namespace of the calling thread. It is bound to
// local, which need not be on this host; with the zero Addr it is not bound. Flush calls
// refused for each message that the kernel does not take, by its place in the order of
// Add.
func NewSender(local netip.Addr, refused func(i int, why stats.Reason)) (*Sender, error) {
	if _, err := kernelControl(); err != nil {
		return nil, err
	}
	raw, err := newRawOutlet(local)
	if err != nil {
		return nil, err
	}
	return &Sender{
		raw:     raw,
		maxWait: maxWait,
		batch:   newBatch(BatchSize, 2),
		refused: refused,
	}, nil
}

// EnableHops opens the packet socket, in the network namespace of the calling thread. It
// comes before the first Flush. Until it has succeeded, no Route's Hop is used: all packets
// leave by the raw socket.
//
// What leaves by the packet socket skips what the kernel has for packets of a raw socket:
// the route lookup, netfilter, IPsec. Queueing disciplines see it.
func (s *Sender) EnableHops() (err error) {
	s.packet, err = newPacketOutlet()
	return err
}

// Add appends one packet to the batch: header, with the whole outer header and
// perhaps more, then payload. Both belong to the Sender until Flush; the batch
// must not be full. Messages of one batch may have different Targets.
func (s *Sender) Add(to *Target, header, payload []byte) {
	s.batch.set(s.n, 0, header)
	s.batch.set(s.n, 1, payload)
	s.slots[s.n].to = to
	s.n++
}

// Message returns packet i of the batch, as it was added, while Flush calls refused.
func (s *Sender) Message(i int) (header, payload []byte) {
	return s.batch.part(i, 0), s.batch.part(i, 1)
}

// Len returns the number of packets in the batch.
func (s *Sender) Len() int { return s.n }

// Flush hands the batch to the kernel, in order, and leaves an empty batch. A packet
// that the kernel does not take is not an error: it is reported to the function given to
// NewSender, and the others are sent. The only error is os.ErrClosed, after Close.
//
// While a socket's buffer is full, Flush waits, for maxWait at most in all; what then still
// has no room is refused as stats.Congested. After a wait, Routes that were set meanwhile
// hold for the rest of the batch.
func (s *Sender) Flush() error {
	end := s.n
	s.n = 0
	var deadline time.Time // for room in a socket's buffer; zero until there is none
	for next := 0; next < end; {
		s.address(next, end)
		for waited := false; next < end && !waited; {
			var err error
			if next, waited, err = s.sendRun(next, end, &deadline); err != nil {
				return err
			}
		}
	}
	return nil
}

// address addresses the messages from first to end−1 to the Routes of their Targets.
func (s *Sender) address(first, end int) {
	slots := s.slots[first:end]
	for i := range slots {
		slot := &slots[i]
		d := slot.to.now.Load()
		if d == slot.at {
			continue
		}
		slot.at = d
		switch {
		case d == nil:
			slot.out = nil
		case d.route.Hop != nil && s.packet != nil:
			slot.out = s.packet
			s.batch.address(first+i, d, true)
		default:
			slot.out = s.raw
			s.batch.address(first+i, d, false)
		}
	}
}

// sendRun hands messages from number next on to the kernel, as far as they are for one
// socket, until those are sent or refused, or until it has waited for room: there may be
// another Route then. It returns the number of the first message that is left.
func (s *Sender) sendRun(next, end int, deadline *time.Time) (left int, waited bool, err error) {
	out := s.slots[next].out
	runEnd := next + 1
	for runEnd < end && s.slots[runEnd].out == out {
		runEnd++
	}
	if out == nil {
		return s.refuse(next, runEnd, stats.NoRoute), false, nil
	}
	fd, ok := out.Acquire()
	if !ok {
		return next, false, os.ErrClosed
	}
	defer out.Release()
	for repeats := 0; next < runEnd; {
		sent, errno := s.batch.sendmmsg(fd, next, runEnd)
		switch errno {
		case 0:
			next += sent
			repeats = 0
		case unix.EINTR:
		case unix.EAGAIN:
			now := time.Now()
			if deadline.IsZero() {
				*deadline = now.Add(s.maxWait)
			}
			if now.Before(*deadline) {
				return next, true, waitForRoom(out, fd, deadline.Sub(now))
			}
			next = s.refuse(next, runEnd, stats.Congested)
		default: // about the first message; those before it were sent
			if repeats < maxRepeats && mayBeICMP(errno) {
				repeats++
				continue
			}
			next = s.refuse(next, next+1, reasonOf(errno))
			repeats = 0
		}
	}
	return next, false, nil
}

// refuse reports the messages from next to end−1, and returns end.
func (s *Sender) refuse(next, end int, why stats.Reason) int {
	for ; next < end; next++ {
		s.refused(next, why)
	}
	return end
}

// waitForRoom waits until the buffer of a socket is half empty, but no longer than
// timeout. There may be room before (sock_writeable in include/net/sock.h), so the next
// call on the socket is worth a try in any case.
func waitForRoom(out *descriptor.FD, fd int, timeout time.Duration) error {
	drainErrorQueue(fd)
	if !out.WaitTimeout(descriptor.Out, timeout) {
		return os.ErrClosed
	}
	return nil
}

// Close closes the sockets and ends a Flush that waits.
func (s *Sender) Close() error {
	err := s.raw.Close()
	if s.packet != nil {
		err = errors.Join(err, s.packet.Close())
	}
	return err
}
