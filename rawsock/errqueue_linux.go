package rawsock

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxQuote is the most of an inner packet that an ICMP error is of use with, in
// bytes.
const maxQuote = 576

// errorQueue reads what IP_RECVERR leaves on a socket (ip(7)). It must not move after
// init.
type errorQueue struct {
	msg     unix.Msghdr
	iov     unix.Iovec
	quote   [maxQuote]byte
	control errorMessage
}

// errorMessage is the only control message that comes with an error to a socket that
// has not asked for others (ip_recv_error in net/ipv4/ip_sockglue.c).
type errorMessage struct {
	hdr      unix.Cmsghdr
	err      unix.SockExtendedErr
	offender unix.RawSockaddrInet4
}

func (q *errorQueue) init() {
	q.iov.Base = &q.quote[0]
	q.iov.SetLen(len(q.quote))
	q.msg.Iov = &q.iov
	q.msg.SetIovlen(1)
	q.msg.Control = (*byte)(unsafe.Pointer(&q.control))
}

// read takes one error off the queue of fd. Its Inner is valid until the next read. If
// ok is false, it was not an ICMP error. There is none with EAGAIN.
func (q *errorQueue) read(fd int) (e ICMPError, ok bool, errno syscall.Errno) {
	q.control = errorMessage{}
	q.msg.SetControllen(int(unsafe.Sizeof(q.control)))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&q.msg)),
		unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return e, false, errno
	}
	c := &q.control
	if c.hdr.Level != unix.SOL_IP || c.hdr.Type != unix.IP_RECVERR || c.err.Origin != unix.SO_EE_ORIGIN_ICMP {
		return e, false, 0 // about this host, not the path
	}
	return ICMPError{
		Type:     c.err.Type,
		Code:     c.err.Code,
		MTU:      int(c.err.Info),
		Offender: netip.AddrFrom4(c.offender.Addr),
		Inner:    q.quote[:n:n],
	}, true, 0
}

// drainErrorQueue empties the error queue of a socket and takes its pending error, which
// otherwise keep poll(2) from waiting (datagram_poll in net/core/datagram.c).
func drainErrorQueue(fd int) {
	var msg unix.Msghdr
	for {
		_, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)),
			unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno != 0 && errno != unix.EINTR {
			break
		}
	}
	clearError(fd)
}

// clearError takes the pending error of a socket, which is set even when the error queue
// has no room (raw_err in net/ipv4/raw.c).
func clearError(fd int) { _, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) }
