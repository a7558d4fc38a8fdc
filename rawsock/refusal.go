package rawsock

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Refusal is the one reason for which the kernel did not send a packet.
type Refusal uint8

// The refusals.
const (
	NoRoute     Refusal = iota // there is none, or its device is down (T3)
	TooBig                     // longer than the device takes, or than the path does and DF is set (T12)
	Congested                  // a queue on the way out of this host is full
	Filtered                   // netfilter or a prohibit route said no
	SendError                  // anything else
	NumRefusals                // how many there are
)

var refusalNames = [NumRefusals]string{
	"no_route", "too_big", "congested", "filtered", "send_error",
}

// String returns the refusal's name as counters and logs show it.
func (r Refusal) String() string { return refusalNames[r] }

// maxRepeats is how often a call is repeated for a message before it counts as refused.
const maxRepeats = 2

// mayBeICMP reports whether an error of send(2) may have waited on the socket since an
// ICMP error arrived (icmp_err_convert in net/ipv4/icmp.c): then the call has taken it
// away, and the message was not tried. Before 2026, Linux let an ICMP error that quotes
// protocol 255 reach sockets of IPPROTO_RAW, so that anybody could spoil a call; an error
// about the message itself comes again.
func mayBeICMP(errno syscall.Errno) bool {
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENOPROTOOPT, unix.ECONNREFUSED, unix.EMSGSIZE,
		unix.EOPNOTSUPP, unix.EHOSTDOWN, unix.ENONET, unix.EPROTO:
		return true
	}
	return false
}

// refusalOf sorts the errors of send(2), of ip(7) and of the route lookup
// (fib_props in net/ipv4/fib_semantics.c).
func refusalOf(errno syscall.Errno) Refusal {
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENODEV, unix.ENXIO,
		unix.EINVAL: // a blackhole route
		return NoRoute
	case unix.EMSGSIZE:
		return TooBig
	case unix.ENOBUFS, unix.ENOMEM:
		return Congested
	case unix.EPERM, unix.EACCES:
		return Filtered
	}
	return SendError
}
