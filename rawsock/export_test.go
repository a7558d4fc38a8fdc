package rawsock

import (
	"errors"
	"net/netip"
	"time"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// For tests of what has no other way out than through the kernel.
var (
	ReasonOf    = reasonOf
	ShareFilter = shareFilter
)

// ParseICMP returns the ICMP error in a packet, if it is about one from local to remote.
func ParseICMP(p packet.IPv4, local, remote netip.Addr) (e ICMPError, ok bool) {
	e, ok = parseICMP(p)
	return e, ok && e.Pair == Pair{local, remote}
}

// Queued reports whether one of the sockets holds a packet. It takes pending errors away.
func (r *Receiver) Queued() (queued bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.inlets {
		_ = l.fd.Control(func(fd int) error {
			clearError(fd)
			_, _, err := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT|unix.MSG_PEEK)
			queued = queued || err == nil
			return nil
		})
	}
	return queued
}

// DropTotal returns the total of a kernel's counts.
func DropTotal(counts ...uint32) (total uint64) {
	var c dropCount
	for _, n := range counts {
		total += c.grown(n)
	}
	return total
}

// Poll returns what poll(2) says of the socket, but for room to write.
func (g *Guard) Poll() int16 { return pollNow(g.fd) }

// Poll returns what poll(2) says of the socket, but for room to write.
func (s *ErrorSocket) Poll() int16 { return pollNow(s.fd) }

// Poll returns what poll(2) says of both sockets, but for room to write.
func (s *Sender) Poll() (events int16) {
	if s.packet != nil {
		events = pollNow(s.packet)
	}
	return events | pollNow(s.raw)
}

func pollNow(f *descriptor.FD) (events int16) {
	_ = f.Control(func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, 0)
		events = fds[0].Revents
		return err
	})
	return events
}

// SetReceiveBuffer sets the size of the socket's buffer, in bytes: with 0, room for a
// message or a few.
func (s *ErrorSocket) SetReceiveBuffer(size int) error {
	return s.fd.Control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size) })
}

// SetSendBuffer sets the size of the sockets' buffers, in bytes.
func (s *Sender) SetSendBuffer(size int) error {
	set := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size) }
	err := s.raw.Control(set)
	if s.packet != nil {
		err = errors.Join(err, s.packet.Control(set))
	}
	return err
}

// SetMaxWait changes how long one Flush waits for room.
func (s *Sender) SetMaxWait(d time.Duration) { s.maxWait = d }

// HearICMP gives the sender a raw socket that ICMP errors about packets of a pair reach, as
// they reach one of protocol 255 in Linux before 2026.
func (s *Sender) HearICMP(p Pair) error {
	raw, err := open(packet.ProtoIPIP, setupRawOutlet)
	if err != nil {
		return err
	}
	err = raw.Control(func(fd int) error { return errors.Join(bind(fd, p.Local), connect(fd, p.Remote)) })
	s.raw.Close()
	s.raw = raw
	return err
}

// WithoutCredit makes receivers whose limit is the socket's buffer, until restore.
func WithoutCredit() (restore func()) {
	noCredit = errors.New("not in this test")
	return func() { noCredit = nil }
}

// KernelControl reports which control messages the kernel takes.
func KernelControl() (protocol, priority bool, err error) {
	s, err := askControl()
	return s.protocol, s.priority, err
}
