package tun

import (
	"os"

	"goipip/internal/descriptor"
)

// Queue is one queue of a device: a descriptor. It has no buffers; a [Reader] and a
// [Writer] bring theirs. At any time one goroutine may read from a queue, and any
// number may write to it. The device closes it.
type Queue struct {
	fd   *descriptor.FD
	vnet bool
}

// newQueue makes a queue of a duplicate of file. vnet says whether its packets carry
// a virtio-net header.
func newQueue(file *os.File, vnet bool) (*Queue, error) {
	fd, err := descriptor.Dup(file)
	if err != nil {
		return nil, err
	}
	return &Queue{fd: fd, vnet: vnet}, nil
}

// VNet reports whether packets carry a virtio-net header. It is the same for all
// queues of a device.
func (q *Queue) VNet() bool { return q.vnet }

// FD returns the descriptor, for those who wait until it is readable. It belongs to
// the device.
func (q *Queue) FD() *descriptor.FD { return q.fd }
