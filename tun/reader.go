package tun

import (
	"errors"
	"fmt"
	"os"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

const (
	// BatchSize is the maximum number of packets that one Read returns.
	BatchSize = 64

	// readSize is the room that one packet may need.
	readSize = packet.VNetHdrLen + packet.IPv4MaxLen
	// bufSize holds four superpackets, or well over BatchSize packets of Ethernet's
	// size.
	bufSize = 4 * readSize
	// maxPackets is how many packets a Reader holds, however short they are.
	maxPackets = 4 * BatchSize
)

// Packet is a packet as a queue carries it.
type Packet struct {
	Bytes []byte         // from the IP header on
	VNet  packet.VNetHdr // the work that is left to do; zero on a plain device
}

// Reader reads packets of any number of queues into one buffer of 256 KiB. One
// goroutine at a time may use it.
type Reader struct {
	buf     []byte
	room    []byte   // the part of buf behind the last packet
	packets []Packet // all since the last Reset
}

// NewReader returns a Reader with an empty buffer.
func NewReader() *Reader {
	r := &Reader{buf: make([]byte, bufSize), packets: make([]Packet, 0, maxPackets)}
	r.Reset()
	return r
}

// Room reports whether the buffer has room for one more packet of any size. Without
// it, Read reads nothing.
func (r *Reader) Room() bool { return len(r.room) >= readSize && len(r.packets) < maxPackets }

// Reset empties the buffer. The packets that Read has returned are not valid any more.
func (r *Reader) Reset() {
	r.room = r.buf
	r.packets = r.packets[:0]
}

// Read appends the packets that q holds now to the buffer, at most BatchSize of them
// and while there is Room, and returns those that it appended. It never waits: for an
// empty queue it returns nil, nil. The packets are valid, and may be changed, until
// Reset.
//
// It returns [ErrDeleted] when the link is gone, and os.ErrClosed after the device was
// closed. Packets read before an error are returned with it.
func (r *Reader) Read(q *Queue) ([]Packet, error) {
	fd, ok := q.fd.Acquire()
	if !ok {
		return nil, os.ErrClosed
	}
	defer q.fd.Release()
	first := len(r.packets)
	err := r.readBatch(fd, q.vnet)
	if len(r.packets) == first {
		return nil, err
	}
	return r.packets[first:len(r.packets):len(r.packets)], err
}

// readBatch reads until the queue is empty, the batch is full, or there might be no
// room for another packet.
func (r *Reader) readBatch(fd int, vnet bool) error {
	room, packets := r.room, r.packets
	defer func() { r.room, r.packets = room, packets }()
	for end := min(len(packets)+BatchSize, maxPackets); len(packets) < end && len(room) >= readSize; {
		n, err := unix.Read(fd, room)
		switch err {
		case nil:
			if p, ok := parse(room[:n:n], vnet); ok {
				packets = append(packets, p)
				room = room[n:]
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return nil
		default:
			return readError(err)
		}
	}
	return nil
}

func parse(b []byte, vnet bool) (p Packet, ok bool) {
	if !vnet {
		return Packet{Bytes: b}, true
	}
	if len(b) < packet.VNetHdrLen {
		return p, false // the kernel writes the header or nothing
	}
	return Packet{Bytes: b[packet.VNetHdrLen:], VNet: packet.DecodeVNetHdr(b)}, true
}

// ErrDeleted means that the link was deleted. Reading from any queue of the device and
// writing to it return ErrDeleted from then on, until the device is closed.
var ErrDeleted = errors.New("the link was deleted")

func readError(err error) error {
	if err == unix.EBADFD {
		return ErrDeleted
	}
	return fmt.Errorf("read tun: %w", err)
}
