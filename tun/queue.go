package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

const (
	// BatchSize is the most packets that one Read returns.
	BatchSize = 64

	// readSize is the room that one packet may need.
	readSize = packet.VNetHdrLen + packet.IPv4MaxLen
	// bufSize holds BatchSize packets of an Ethernet's size, and a whole
	// superpacket after them.
	bufSize = BatchSize*1536 + readSize
)

// Errors of Write that concern one packet, which is lost. The queue works on.
var (
	ErrDown    = errors.New("the link is down")
	ErrRefused = errors.New("the kernel does not take the packet")
)

// Packet is a packet as a queue carries it.
type Packet struct {
	Bytes []byte         // from the IP header on
	VNet  packet.VNetHdr // what is left to do for it; zero on a plain device
}

// Queue is one queue of a device. One goroutine at a time may Read, and one
// may Write.
type Queue struct {
	file *os.File
	raw  syscall.RawConn
	vnet bool

	buf     []byte
	packets []Packet
	readErr error
	read    func(fd uintptr) bool // q.readBatch, bound once: binding allocates

	hdr      [packet.VNetHdrLen]byte
	iovs     []unix.Iovec
	writeErr error
	write    func(fd uintptr) bool // q.writev, bound once
}

// newQueue takes a descriptor that does not block, and whose packets carry a
// virtio-net header or not. The queue owns file only when there is no error.
func newQueue(file *os.File, vnet bool) (*Queue, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &Queue{
		file:    file,
		raw:     raw,
		vnet:    vnet,
		buf:     make([]byte, bufSize),
		packets: make([]Packet, 0, BatchSize),
		iovs:    make([]unix.Iovec, 0, BatchSize),
	}
	q.read, q.write = q.readBatch, q.writev
	return q, nil
}

// VNet reports whether packets carry a virtio-net header.
func (q *Queue) VNet() bool { return q.vnet }

// Read waits until there is a packet and returns it with all others that are
// there already, at most BatchSize. They are valid until the next Read, and may
// be changed until then. It returns ErrDeleted when the link is gone, and
// os.ErrClosed after the device was closed.
func (q *Queue) Read() ([]Packet, error) {
	q.packets, q.readErr = q.packets[:0], nil
	if q.raw.Read(q.read) != nil {
		return nil, q.goneError()
	}
	return q.packets, q.readErr
}

// readBatch reads until nothing is left, the batch is full, or there might be no
// room for another packet. It reports false to be called again when there is
// something to read.
func (q *Queue) readBatch(fd uintptr) bool {
	room := q.buf
	for len(q.packets) < BatchSize && len(room) >= readSize {
		n, err := unix.Read(int(fd), room)
		switch err {
		case nil:
			if p, ok := q.parse(room[:n:n]); ok {
				q.packets = append(q.packets, p)
				room = room[n:]
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return len(q.packets) > 0
		default:
			q.readErr = readError(err)
			return true
		}
	}
	return true
}

func (q *Queue) parse(b []byte) (p Packet, ok bool) {
	if !q.vnet {
		return Packet{Bytes: b}, true
	}
	if len(b) < packet.VNetHdrLen {
		return p, false // the kernel writes the header or nothing
	}
	return Packet{Bytes: b[packet.VNetHdrLen:], VNet: packet.DecodeVNetHdr(b)}, true
}

// goneError tells the two reasons apart for which there is no waiting for the
// descriptor: it was closed, or the link is gone. The poller does not wait for a
// descriptor that is in error and nothing else (tun_chr_poll in
// drivers/net/tun.c).
func (q *Queue) goneError() error {
	if q.raw.Control(func(uintptr) {}) != nil {
		return os.ErrClosed
	}
	return ErrDeleted
}

func readError(err error) error {
	if err == unix.EBADFD {
		return ErrDeleted
	}
	return fmt.Errorf("read tun: %w", err)
}

// Write passes one packet to the kernel as received on the link: all parts, one
// after the other. hdr must be zero on a plain device. The parts are not kept.
//
// ErrDown and ErrRefused lose just this packet; ErrDeleted and os.ErrClosed are
// as for Read.
func (q *Queue) Write(hdr packet.VNetHdr, parts [][]byte) error {
	q.iovs, q.writeErr = q.iovs[:0], nil
	if q.vnet {
		hdr.Encode(q.hdr[:])
		q.iovs = appendIovec(q.iovs, q.hdr[:])
	}
	for _, part := range parts {
		q.iovs = appendIovec(q.iovs, part)
	}
	if q.raw.Write(q.write) != nil {
		return q.goneError()
	}
	return q.writeErr
}

func (q *Queue) writev(fd uintptr) bool {
	for {
		switch errno := writev(fd, q.iovs); errno {
		case 0:
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case unix.EIO: // tun_get_user on a link that is not up
			q.writeErr = ErrDown
		case unix.EBADFD:
			q.writeErr = ErrDeleted
		default: // EINVAL for a header that does not fit the packet, ENOMEM
			q.writeErr = ErrRefused
		}
		return true
	}
}
