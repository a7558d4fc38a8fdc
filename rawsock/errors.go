package rawsock

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// ErrorBatch is the most ICMP messages that one ReadErrors reads.
const ErrorBatch = 32

// Sizes in bytes.
const (
	// errorBuffer is the size of the receive buffer before the kernel doubles it: room
	// for a hundred ICMP errors or more. A lower net.core.rmem_max makes it smaller.
	errorBuffer = 128 << 10
	// maxMessage is the longest packet with an ICMP error. RFC 1812 §4.3.2.3 allows 576
	// bytes, and some routers quote up to the MTU of a link.
	maxMessage = 2048
	// minQuote is how much of the payload of the packet in question a message must quote
	// (RFC 792; icmp_socket_deliver in net/ipv4/icmp.c).
	minQuote = 8
	// maxQuote is the most of an inner packet that ICMPError.Inner holds.
	maxQuote = 576
)

// maxUnreachCode is the last code of "destination unreachable" that the kernel knows
// (NR_ICMP_UNREACH in linux/icmp.h). It ignores the others.
const maxUnreachCode = 15

// ICMPError is an ICMP error about an ipip packet.
type ICMPError struct {
	// Pair is that of the packet in question: it went from Pair.Local to Pair.Remote.
	Pair Pair
	// Type is packet.ICMPUnreachable or packet.ICMPTimeExceeded (RFC 792).
	Type, Code uint8
	// MTU is that of the next hop, in bytes, from a router that could not forward a packet
	// for its length. It is 0 if the router did not say (before RFC 1191), and for all
	// other errors.
	MTU      int
	Offender netip.Addr // the sender of the error
	// Inner is what the message quotes of the inner packet, from its IP header on: 8 to
	// 576 bytes.
	Inner packet.IPv4
}

// ErrorSocket receives the ICMP errors about ipip packets: destination unreachable and
// time exceeded. It is a raw socket of protocol ICMP, for which the kernel copies no
// data packet, and needs neither a route nor a local address.
//
// What does not fit its buffer is lost.
type ErrorSocket struct {
	fd   *descriptor.FD
	only atomic.Pointer[Pair] // as set last
	buf  [maxMessage]byte
}

// NewErrorSocket opens an ErrorSocket in the network namespace of the calling thread. It
// receives nothing until SetPair.
func NewErrorSocket() (*ErrorSocket, error) {
	fd, err := open(packet.ProtoICMP, func(fd int) error {
		if err := setICMPFilter(fd); err != nil {
			return err
		}
		if err := setFilter(fd, dropAll()); err != nil {
			return err
		}
		discard(fd)
		return setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, "SO_RCVBUF", errorBuffer)
	})
	if err != nil {
		return nil, err
	}
	return &ErrorSocket{fd: fd}, nil
}

// SetPair limits what the socket receives to errors about packets of one pair, so that others
// neither fill its buffer nor wake the reader. With nil, it receives those about all ipip
// packets. Any goroutine may call it.
func (s *ErrorSocket) SetPair(p *Pair) error {
	only, local := p, anyAddr
	if p != nil {
		pair := *p
		only, local = &pair, pair.Local
	}
	return s.fd.Control(func(fd int) error {
		// The kernel only copies what is for the address that the socket is bound to.
		if err := bind(fd, local); err != nil {
			return err
		}
		s.only.Store(nil) // what passes either filter
		if err := setFilter(fd, quoteFilter(only)); err != nil {
			return err
		}
		s.only.Store(only)
		return nil
	})
}

// ReadErrors waits until there is an ICMP error, calls handle for each one that is there,
// and returns nil. An ICMPError's Inner is valid during the call. After Close it returns
// os.ErrClosed. One goroutine at a time may call it.
//
// It reads at most ErrorBatch messages. If all of those were malformed, it returns nil
// without having called handle, so that the caller can limit the cost of a flood.
func (s *ErrorSocket) ReadErrors(handle func(ICMPError)) error {
	fd, ok := s.fd.Acquire()
	if !ok {
		return os.ErrClosed
	}
	defer s.fd.Release()
	s.fd.Answer()
	handled := false
	for n := 0; n < ErrorBatch; {
		e, ok, errno := s.read(fd)
		switch {
		case ok:
			handle(e)
			handled = true
			n++
		case fatal(errno):
			return os.NewSyscallError("read", errno)
		case errno != unix.EAGAIN:
			n++ // malformed, or not read
		case handled:
			return nil
		case !s.fd.Wait(descriptor.In):
			return os.ErrClosed
		}
	}
	return nil
}

// Poke asks the goroutine that calls ReadErrors for a sign of life, see Answered.
func (s *ErrorSocket) Poke() { s.fd.Poke() }

// Answered reports whether that goroutine has been in ReadErrors since the last Poke.
func (s *ErrorSocket) Answered() bool { return s.fd.Answered() }

// read takes one message off the socket. If ok is false, it was not one to report. With
// EAGAIN there is none. Inner is valid until the next read.
func (s *ErrorSocket) read(fd int) (e ICMPError, ok bool, errno syscall.Errno) {
	n, err := unix.Read(fd, s.buf[:])
	if err != nil {
		errno, _ = err.(syscall.Errno)
		return e, false, errno
	}
	e, ok = parseICMP(s.buf[:n])
	if only := s.only.Load(); only != nil && !only.has(e.Pair) {
		ok = false // it came before SetPair
	}
	return e, ok, 0
}

// has reports whether packets between the addresses of q are of the pair p.
func (p *Pair) has(q Pair) bool { return p.Remote == q.Remote && (p.Local == q.Local || p.anyLocal()) }

// Close closes the socket and ends a ReadErrors that waits.
func (s *ErrorSocket) Close() error {
	if err := s.fd.Close(); err != nil {
		return fmt.Errorf("close ICMP socket: %w", err)
	}
	return nil
}

// parseICMP returns the ICMP error in p, a packet of protocol ICMP, if it is about an ipip
// packet. Inner is a part of p.
//
// A raw socket receives messages before the kernel has checked them, so this accepts what
// icmp_rcv, icmp_unreach and icmp_socket_deliver in net/ipv4/icmp.c do. A message that was
// cut, since it was longer than the buffer, is not valid.
func parseICMP(p packet.IPv4) (e ICMPError, ok bool) {
	if !p.Valid() {
		return e, false
	}
	m := packet.ICMP(p.Payload())
	if !m.Valid() || !reported(m.Type(), m.Code()) {
		return e, false
	}
	quote := m.Quote()
	if !quote.HasHeader() || len(quote) < quote.HdrLen()+minQuote {
		return e, false
	}
	if quote.Protocol() != packet.ProtoIPIP {
		return e, false
	}
	e = ICMPError{
		Pair:     Pair{netip.AddrFrom4(quote.Source()), netip.AddrFrom4(quote.Destination())},
		Type:     m.Type(),
		Code:     m.Code(),
		Offender: netip.AddrFrom4(p.Source()),
	}
	if e.Type == packet.ICMPUnreachable && e.Code == packet.ICMPCodeFragNeeded {
		e.MTU = m.MTU()
	}
	inner := quote[quote.HdrLen():]
	n := min(len(inner), maxQuote)
	e.Inner = inner[:n:n]
	return e, true
}

// reported reports whether the kernel reports errors of this type and code to sockets
// (icmp_unreach in net/ipv4/icmp.c); parameter problems, which it reports too, are of no
// use to a tunnel. Code 1 of "time exceeded" is about reassembly at the remote host.
func reported(icmpType, code uint8) bool {
	switch icmpType {
	case packet.ICMPUnreachable:
		return code <= maxUnreachCode
	case packet.ICMPTimeExceeded:
		return code != packet.ICMPCodeReassembly
	}
	return false
}

// setICMPFilter lets a socket receive only two of the types below 32, before the kernel
// copies a message for it (icmp_filter in net/ipv4/raw.c). Types from 32 on pass.
func setICMPFilter(fd int) error {
	var f ipv4.ICMPFilter
	f.SetAll(true) // block
	f.Accept(ipv4.ICMPTypeDestinationUnreachable)
	f.Accept(ipv4.ICMPTypeTimeExceeded)
	return lend(fd, func(conn *net.IPConn) error { return ipv4.NewPacketConn(conn).SetICMPFilter(&f) })
}

// quoteFilter keeps ICMP messages that quote an ipip packet of a pair, or with nil any ipip
// packet. A message too short for that is dropped, as is all that a load beyond its end
// meets.
func quoteFilter(p *Pair) []bpf.Instruction {
	const quote = packet.ICMPHdrLen
	isIPIP := []bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // X = where the ICMP message begins
		bpf.LoadIndirect{Off: quote + offProtocol, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: packet.ProtoIPIP, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
	}
	if p == nil {
		return append(isIPIP, bpf.RetConstant{Val: keep})
	}
	if !p.anyLocal() {
		isIPIP = append(isIPIP,
			bpf.LoadIndirect{Off: quote + offSource, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: number(p.Local), SkipTrue: 1},
			bpf.RetConstant{Val: drop},
		)
	}
	return append(isIPIP,
		bpf.LoadIndirect{Off: quote + offDestination, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number(p.Remote), SkipTrue: 1},
		bpf.RetConstant{Val: keep},
		bpf.RetConstant{Val: drop},
	)
}
