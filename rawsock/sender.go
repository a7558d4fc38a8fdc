package rawsock

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"goipip/internal/descriptor"
	"goipip/internal/stats"

	"golang.org/x/sys/unix"
)

// Sender sends a tunnel's packets in batches. One goroutine at a time may use
// it.
type Sender struct {
	remote *unix.SockaddrInet4
	mark   uint32
	raw    *descriptor.FD
	packet *descriptor.FD // nil without hops
	hop    atomic.Pointer[Hop]

	attachProtocol bool // to packets on raw, as a control message

	maxWait time.Duration // const, but for tests

	batch   batch
	out     *descriptor.FD // where the batch goes
	to      *Hop           // that the batch is addressed to; nil for the remote host
	n       int            // messages added
	refused func(i int, why stats.Reason)
}

// Hop is the next hop on the way to the remote host: a neighbour on an Ethernet.
type Hop struct {
	Device int     // index of the device that leads there
	Addr   [6]byte // link-layer address
}

// maxWait is how long one Flush waits for room in a socket's buffer.
const maxWait = 10 * time.Millisecond

// NewSender opens a sender in the network namespace of the calling thread.
// Flush calls refused for each message that the kernel does not take, by its
// place in the order of Add.
func NewSender(cfg Config, refused func(i int, why stats.Reason)) (*Sender, error) {
	raw, err := newRawOutlet(cfg)
	if err != nil {
		return nil, err
	}
	s := &Sender{
		remote:  sockaddr(cfg.Remote),
		mark:    cfg.Mark,
		raw:     raw,
		maxWait: maxWait,
		batch:   newBatch(BatchSize, 2),
		out:     raw,
		refused: refused,
	}
	s.attachProtocol = takesProtocol(raw)
	s.batch.toHost(s.remote, s.attachProtocol)
	return s, nil
}

// EnableHops makes SetHop work, in the network namespace of the calling thread. It
// comes before the first Flush.
func (s *Sender) EnableHops() (err error) {
	s.packet, err = newPacketOutlet(s.mark)
	return err
}

// SetDevice changes Config.Device for what a raw socket sends from now on. Without a
// device of that index, packets are refused with stats.NoRoute. Any goroutine may call it at
// any time; to change a device that is set takes CAP_NET_RAW.
func (s *Sender) SetDevice(index int) error {
	return s.raw.Control(func(fd int) error { return bindToDevice(fd, index) })
}

// SetHop has the following batches leave for h, by a packet socket. Such packets
// skip what the kernel has for those of a raw socket: the route lookup, netfilter,
// IPsec. Queueing disciplines see them. With nil, a raw socket sends again. Anybody
// may call it at any time, after EnableHops.
func (s *Sender) SetHop(h *Hop) { s.hop.Store(h) }

// Add appends one packet to the batch: header, with the whole outer header and
// perhaps more, then payload. Both belong to the Sender until Flush; the batch
// must not be full.
func (s *Sender) Add(header, payload []byte) {
	s.batch.set(s.n, 0, header)
	s.batch.set(s.n, 1, payload)
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
// While the socket's buffer is full, Flush waits for maxWait at most; what then still
// has no room is refused as stats.Congested. What SetHop was given meanwhile holds for the
// rest of the batch.
func (s *Sender) Flush() error {
	end := s.n
	s.n = 0
	var deadline time.Time // for room in the socket's buffer; zero until there is none
	for next := 0; next < end; {
		if hop := s.hop.Load(); hop != s.to {
			s.address(hop)
		}
		var err error
		if next, err = s.send(next, end, &deadline); err != nil {
			return err
		}
	}
	return nil
}

// send hands messages from number next on to the kernel, until those before end are sent
// or refused, or until it has waited for room: there may be another hop then. It returns
// the number of the first message that is left.
func (s *Sender) send(next, end int, deadline *time.Time) (int, error) {
	fd, ok := s.out.Acquire()
	if !ok {
		return next, os.ErrClosed
	}
	defer s.out.Release()
	for repeats := 0; next < end; {
		sent, errno := s.batch.sendmmsg(fd, next, end)
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
				return next, s.waitForRoom(fd, deadline.Sub(now))
			}
			for ; next < end; next++ {
				s.refused(next, stats.Congested)
			}
		default: // about the first message; those before it were sent
			if repeats < maxRepeats && mayBeICMP(errno) {
				repeats++
				continue
			}
			s.refused(next, reasonOf(errno))
			next++
			repeats = 0
		}
	}
	return next, nil
}

// waitForRoom waits until the buffer of the socket is half empty, but no longer than
// timeout. There may be room before (sock_writeable in include/net/sock.h), so the next
// call on the socket is worth a try in any case.
func (s *Sender) waitForRoom(fd int, timeout time.Duration) error {
	drainErrorQueue(fd)
	if !s.out.WaitTimeout(descriptor.Out, timeout) {
		return os.ErrClosed
	}
	return nil
}

// address addresses the batch to another hop, or with nil to the remote host.
func (s *Sender) address(hop *Hop) {
	s.to = hop
	if hop == nil {
		s.out = s.raw
		s.batch.toHost(s.remote, s.attachProtocol)
		return
	}
	s.out = s.packet
	s.batch.toHop(*hop)
}

// Close closes the sockets and ends a Flush that waits.
func (s *Sender) Close() error {
	err := s.raw.Close()
	if s.packet != nil {
		err = errors.Join(err, s.packet.Close())
	}
	return err
}
