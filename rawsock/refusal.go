package rawsock

import (
	"syscall"

	"goipip/internal/stats"

	"golang.org/x/sys/unix"
)

// maxRepeats is how often a call is repeated for a message before it counts as refused.
const maxRepeats = 2

// mayBeICMP reports whether an error of send(2) may have waited on the socket since an
// ICMP error arrived (icmp_err_convert in net/ipv4/icmp.c): then the call has taken it
// away, and the message was not tried. Before 2026, Linux let an ICMP error that quotes
// protocol 255 reach sockets of IPPROTO_RAW, so that any host could spoil a call; an error
// about the message itself comes again.
func mayBeICMP(errno syscall.Errno) bool {
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENOPROTOOPT, unix.ECONNREFUSED, unix.EMSGSIZE,
		unix.EOPNOTSUPP, unix.EHOSTDOWN, unix.ENONET, unix.EPROTO:
		return true
	}
	return false
}

// reasonOf returns the reason for which the kernel did not send a packet, by the errors
// of send(2), of ip(7) and of the route lookup (fib_props in net/ipv4/fib_semantics.c).
func reasonOf(errno syscall.Errno) stats.Reason {
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENODEV, unix.ENXIO,
		unix.EINVAL: // a blackhole route
		return stats.NoRoute
	case unix.EMSGSIZE:
		return stats.TooBig
	case unix.ENOBUFS, unix.ENOMEM:
		return stats.Congested
	case unix.EPERM, unix.EACCES:
		return stats.Filtered
	}
	return stats.SendError
}
