package rawsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

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
