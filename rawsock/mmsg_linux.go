package rawsock

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch is the preallocated argument of recvmmsg(2) and sendmmsg(2): messages of
// a fixed number of parts each. It keeps the memory of its parts alive.
type batch struct {
	msgs []mmsghdr
	iovs []unix.Iovec
	per  int // parts of one message
}

func newBatch(messages, parts int) batch {
	b := batch{
		msgs: make([]mmsghdr, messages),
		iovs: make([]unix.Iovec, messages*parts),
		per:  parts,
	}
	for i := range b.msgs {
		b.msgs[i].hdr.Iov = &b.iovs[i*parts]
		b.msgs[i].hdr.SetIovlen(parts)
	}
	return b
}

// set makes p one part of message i.
func (b *batch) set(i, part int, p []byte) {
	iov := &b.iovs[i*b.per+part]
	iov.Base = unsafe.SliceData(p)
	iov.SetLen(len(p))
}

// part returns what set made one part of message i.
func (b *batch) part(i, part int) []byte {
	iov := &b.iovs[i*b.per+part]
	return unsafe.Slice(iov.Base, iov.Len)
}

// len returns the length of message i as it was received.
func (b *batch) len(i int) int { return int(b.msgs[i].len) }

// recvmmsg fills messages from number first on and returns how many.
func (b *batch) recvmmsg(fd, first int) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&b.msgs[first])), uintptr(len(b.msgs)-first), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// sendmmsg sends the messages from first to end−1 and returns how many the
// kernel took before one that it did not. An error is about the first.
func (b *batch) sendmmsg(fd, first, end int) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&b.msgs[first])), uintptr(end-first), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}
