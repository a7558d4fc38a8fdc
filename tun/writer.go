package tun

import (
	"errors"
	"os"
	"syscall"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// Errors of Write that concern one packet, which is lost. The queue works on.
var (
	ErrDown    = errors.New("the link is down")
	ErrRefused = errors.New("the kernel does not take the packet")
)

// Writer writes to a queue. A queue may have several, each for one goroutine at a
// time: the kernel takes every packet whole.
type Writer struct {
	raw   syscall.RawConn
	vnet  bool
	hdr   [packet.VNetHdrLen]byte
	iovs  []unix.Iovec
	err   error
	write func(fd uintptr) bool // w.writev, bound once: binding allocates
}

func newWriter(raw syscall.RawConn, vnet bool) *Writer {
	w := &Writer{raw: raw, vnet: vnet, iovs: make([]unix.Iovec, 0, BatchSize)}
	w.write = w.writev
	return w
}

// VNet reports whether packets carry a virtio-net header.
func (w *Writer) VNet() bool { return w.vnet }

// Write passes one packet to the kernel as received on the link: all parts, one
// after the other. hdr must be zero on a plain device. The parts are not kept.
//
// ErrDown and ErrRefused lose just this packet; ErrDeleted and os.ErrClosed are
// as for Read.
func (w *Writer) Write(hdr packet.VNetHdr, parts [][]byte) error {
	w.iovs, w.err = w.iovs[:0], nil
	if w.vnet {
		hdr.Encode(w.hdr[:])
		w.iovs = appendIovec(w.iovs, w.hdr[:])
	}
	for _, part := range parts {
		w.iovs = appendIovec(w.iovs, part)
	}
	if w.raw.Write(w.write) != nil {
		return w.goneError()
	}
	return w.err
}

func (w *Writer) writev(fd uintptr) bool {
	for {
		switch errno := writev(fd, w.iovs); errno {
		case 0:
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case unix.EIO: // tun_get_user on a link that is not up
			w.err = ErrDown
		case unix.EBADFD:
			w.err = ErrDeleted
		default: // EINVAL for a header that does not fit the packet, ENOMEM
			w.err = ErrRefused
		}
		return true
	}
}

// goneError tells the two reasons apart for which there is no waiting for the
// descriptor: it was closed, or the link is gone. The poller does not wait for a
// descriptor that is in error and nothing else (tun_chr_poll in
// drivers/net/tun.c).
func (w *Writer) goneError() error {
	if w.raw.Control(func(uintptr) {}) != nil {
		return os.ErrClosed
	}
	return ErrDeleted
}
