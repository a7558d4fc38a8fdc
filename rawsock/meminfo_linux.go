package rawsock

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// meminfo is the answer to SO_MEMINFO (SK_MEMINFO_* in linux/sock_diag.h,
// sk_get_meminfo in net/core/sock.c; Linux 4.12).
type meminfo struct {
	_     [8]uint32
	drops uint32 // packets, modulo 2³²
}

// socketDrops returns how many packets a socket has dropped, modulo 2³².
func socketDrops(fd int) (uint32, error) {
	var m meminfo
	size := uint32(unsafe.Sizeof(m))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt SO_MEMINFO", errno)
	}
	return m.drops, nil
}
