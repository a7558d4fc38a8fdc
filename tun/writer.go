package tun

import (
	"errors"
	"os"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// Errors of Write that concern one packet, which is lost. The queue works on.
var (
	ErrDown     = errors.New("the link is down")
	ErrRefused  = errors.New("the kernel refuses the packet")
	ErrNoMemory = errors.New("the kernel has no memory for the packet")
)

// Writer writes packets to any number of queues. One goroutine at a time may use it.
// Several Writers may write to one queue at once: the kernel takes each packet as a
// whole.
type Writer struct {
	hdr  [packet.VNetHdrLen]byte
	iovs []unix.Iovec
}

// NewWriter returns a Writer.
func NewWriter() *Writer { return &Writer{iovs: make([]unix.Iovec, 0, BatchSize)} }

// Write passes one packet to the kernel as received on q's link: all parts, one after
// the other. hdr must be zero on a plain device. Write changes no part, and needs none
// after it has returned. It never waits.
//
// [ErrDown], [ErrRefused] and [ErrNoMemory] concern this packet only; [ErrDeleted] and
// os.ErrClosed are as for [Reader.Read].
func (w *Writer) Write(q *Queue, hdr packet.VNetHdr, parts [][]byte) error {
	w.iovs = w.iovs[:0]
	if q.vnet {
		hdr.Encode(w.hdr[:])
		w.iovs = appendIovec(w.iovs, w.hdr[:])
	}
	for _, part := range parts {
		w.iovs = appendIovec(w.iovs, part)
	}
	fd, ok := q.fd.Acquire()
	if !ok {
		return os.ErrClosed
	}
	defer q.fd.Release()
	for {
		switch errno := writev(fd, w.iovs); errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EIO: // tun_get_user on a link that is not up
			return ErrDown
		case unix.EBADFD:
			return ErrDeleted
		case unix.EAGAIN, unix.ENOMEM, unix.ENOBUFS: // EAGAIN: the socket's send buffer is full
			return ErrNoMemory
		default: // EINVAL for a header that does not fit the packet
			return ErrRefused
		}
	}
}
