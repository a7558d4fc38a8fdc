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
