package tun

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// appendIovec appends b to iovs. The iovec keeps b's memory alive.
func appendIovec(iovs []unix.Iovec, b []byte) []unix.Iovec {
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	return append(iovs, iov)
}

// writev is writev(2) with iovecs that the caller keeps; unix.Writev makes new ones
// for each call. A TUN takes all or nothing.
func writev(fd int, iovs []unix.Iovec) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_WRITEV,
		uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
	return errno
}
