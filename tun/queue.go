package tun

import (
	"fmt"
	"os"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

const (
	// BatchSize is the most packets that one Read returns.
	BatchSize = 64

	// readSize is the room that one packet may need.
	readSize = packet.VNetHdrLen + packet.IPv4MaxLen
	// bufSize holds four superpackets, or BatchSize packets of an Ethernet's size
	// and then some.
	bufSize = 4 * readSize
)

// Packet is a packet as a queue carries it.
type Packet struct {
	Bytes []byte         // from the IP header on
	VNet  packet.VNetHdr // what is left to do for it; zero on a plain device
}

// Queue is one queue of a device. One goroutine at a time may Read, and one
// may Write.
type Queue struct {
	*Writer
	file *os.File

	buf     []byte
	packets []Packet
	err     error
	read    func(fd uintptr) bool // q.readBatch, bound once: binding allocates
}

// newQueue takes a descriptor that does not block, and whose packets carry a
// virtio-net header or not. The queue owns file only when there is no error.
func newQueue(file *os.File, vnet bool) (*Queue, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &Queue{
		Writer:  newWriter(raw, vnet),
		file:    file,
		buf:     make([]byte, bufSize),
		packets: make([]Packet, 0, BatchSize),
	}
	q.read = q.readBatch
	return q, nil
}

// NewWriter returns a writer of this queue for one more goroutine.
func (q *Queue) NewWriter() *Writer { return newWriter(q.raw, q.vnet) }

// Read waits until there is a packet and returns it with all others that are
// there already, at most BatchSize. They are valid until the next Read, and may
// be changed until then. It returns ErrDeleted when the link is gone, and
// os.ErrClosed after the device was closed.
func (q *Queue) Read() ([]Packet, error) {
	q.packets, q.err = q.packets[:0], nil
	if q.raw.Read(q.read) != nil {
		return nil, q.goneError()
	}
	return q.packets, q.err
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
			q.err = readError(err)
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

func readError(err error) error {
	if err == unix.EBADFD {
		return ErrDeleted
	}
	return fmt.Errorf("read tun: %w", err)
}
