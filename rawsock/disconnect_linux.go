package rawsock

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disconnect dissolves what connect and bind have done to a socket, and the socket receives
// no more packets (__udp_disconnect in net/ipv4/udp.c).
func disconnect(fd int) error {
	name := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return os.NewSyscallError("connect to AF_UNSPEC", errno)
	}
	return nil
}
