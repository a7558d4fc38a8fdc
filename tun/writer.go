package tun

import (
	"errors"
	"os"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// Errors of Write that concern one packet, which is lost. The queue works on.
var (
	ErrDown     = errors.New("the link is down")
	ErrRefused  = errors.New("the kernel does not take the packet")
	ErrNoMemory = errors.New("the kernel has no memory for the packet")
)

// Writer writes to a queue. A queue may have several, each for one goroutine at a
// time: the kernel takes every packet whole.
type Writer struct {
	fd   *descriptor.FD
	vnet bool
	hdr  [packet.VNetHdrLen]byte
	iovs []unix.Iovec
}

func newWriter(fd *descriptor.FD, vnet bool) *Writer {
	return &Writer{fd: fd, vnet: vnet, iovs: make([]unix.Iovec, 0, BatchSize)}
}

// VNet reports whether packets carry a virtio-net header.
func (w *Writer) VNet() bool { return w.vnet }

// Write passes one packet to the kernel as received on the link: all parts, one
// after the other. hdr must be zero on a plain device. The parts are not kept.
//
// ErrDown, ErrRefused and ErrNoMemory lose just this packet; ErrDeleted and os.ErrClosed are
// as for Read.
func (w *Writer) Write(hdr packet.VNetHdr, parts [][]byte) error {
	w.iovs = w.iovs[:0]
	if w.vnet {
		hdr.Encode(w.hdr[:])
		w.iovs = appendIovec(w.iovs, w.hdr[:])
	}
	for _, part := range parts {
		w.iovs = appendIovec(w.iovs, part)
	}
	fd, ok := w.fd.Acquire()
	if !ok {
		return os.ErrClosed
	}
	defer w.fd.Release()
	for {
		switch errno := writev(fd, w.iovs); errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			if !w.fd.Wait(descriptor.Out) {
				return os.ErrClosed
			}
		case unix.EIO: // tun_get_user on a link that is not up
			return ErrDown
		case unix.EBADFD:
			return ErrDeleted
		case unix.ENOMEM, unix.ENOBUFS:
			return ErrNoMemory
		default: // EINVAL for a header that does not fit the packet
			return ErrRefused
		}
	}
}
