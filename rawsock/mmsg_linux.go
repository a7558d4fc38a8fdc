package rawsock

import (
	"syscall"
	"unsafe"

	"goipip/internal/packet"

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
	inet unix.RawSockaddrInet4
	link unix.RawSockaddrLinklayer
	ipip protocol
}

// protocol is the control message IP_PROTOCOL (linux/in.h).
type protocol struct {
	hdr   unix.Cmsghdr
	value int32
	_     int32
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

// toHost addresses all messages to a, with a control message that tells their protocol
// if attachProtocol is set. The batch must not move afterwards.
func (b *batch) toHost(a *unix.SockaddrInet4, attachProtocol bool) {
	b.inet = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr}
	b.setName(unsafe.Pointer(&b.inet), unix.SizeofSockaddrInet4)
	if !attachProtocol {
		b.setControl(nil, 0)
		return
	}
	b.ipip.hdr.Level, b.ipip.hdr.Type = unix.SOL_IP, ipProtocol
	b.ipip.hdr.SetLen(unix.CmsgLen(4))
	b.ipip.value = packet.ProtoIPIP
	b.setControl(unsafe.Pointer(&b.ipip), unix.CmsgSpace(4))
}

// toHop addresses all messages to h (packet(7)). The batch must not move
// afterwards.
func (b *batch) toHop(h Hop) {
	b.link = unix.RawSockaddrLinklayer{
		Family:  unix.AF_PACKET,
		Ifindex: int32(h.Device),
		Halen:   uint8(len(h.Addr)),
	}
	*(*[2]byte)(unsafe.Pointer(&b.link.Protocol)) = [2]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff} // in network order
	copy(b.link.Addr[:], h.Addr[:])
	b.setName(unsafe.Pointer(&b.link), unix.SizeofSockaddrLinklayer)
	b.setControl(nil, 0)
}

func (b *batch) setName(name unsafe.Pointer, length uint32) {
	for i := range b.msgs {
		b.msgs[i].hdr.Name = (*byte)(name)
		b.msgs[i].hdr.Namelen = length
	}
}

func (b *batch) setControl(message unsafe.Pointer, length int) {
	for i := range b.msgs {
		b.msgs[i].hdr.Control = (*byte)(message)
		b.msgs[i].hdr.SetControllen(length)
	}
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
