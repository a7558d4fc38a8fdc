package tun

import (
	"fmt"
	"os"

	"goipip/internal/descriptor"
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
	fd *descriptor.FD

	poller  descriptor.Poller
	buf     []byte
	packets []Packet
}

// newQueue makes a queue of a duplicate of file, whose packets carry a virtio-net
// header or not.
func newQueue(file *os.File, vnet bool) (*Queue, error) {
	fd, err := descriptor.Dup(file)
	if err != nil {
		return nil, err
	}
	return &Queue{
		Writer:  newWriter(fd, vnet),
		fd:      fd,
		poller:  descriptor.NewPoller(fd),
		buf:     make([]byte, bufSize),
		packets: make([]Packet, 0, BatchSize),
	}, nil
}

// NewWriter returns a writer of this queue for one more goroutine.
func (q *Queue) NewWriter() *Writer { return newWriter(q.fd, q.vnet) }

// Read waits until there is a packet and returns it with all others that are
// there already, at most BatchSize. They are valid until the next Read, and may
// be changed until then. It returns ErrDeleted when the link is gone, and
// os.ErrClosed after the device was closed.
func (q *Queue) Read() ([]Packet, error) {
	fd, ok := q.fd.Acquire()
	if !ok {
		return nil, os.ErrClosed
	}
	defer q.fd.Release()
	for q.poller.Begin(); ; {
		err := q.readBatch(fd)
		switch {
		case err != unix.EAGAIN:
			return q.packets, err
		case q.poller.Again():
		case !q.poller.Wait():
			return nil, os.ErrClosed
		}
	}
}

// readBatch reads until nothing is left, the batch is full, or there might be no
// room for another packet. It returns unix.EAGAIN when there is nothing.
func (q *Queue) readBatch(fd int) error {
	q.packets = q.packets[:0]
	room := q.buf
	for len(q.packets) < BatchSize && len(room) >= readSize {
		n, err := unix.Read(fd, room)
		switch err {
		case nil:
			if p, ok := q.parse(room[:n:n]); ok {
				q.packets = append(q.packets, p)
				room = room[n:]
			}
		case unix.EINTR:
		case unix.EAGAIN:
			if len(q.packets) > 0 {
				return nil
			}
			return err
		default:
			return readError(err)
		}
	}
	return nil
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
