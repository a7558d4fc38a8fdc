package rawsock

import (
	"errors"
	"slices"
	"sync/atomic"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// inlet is a socket of a receiver. A receiver has one, and for a short time a second one,
// which has been replaced and holds what arrived before.
type inlet struct {
	fd     *descriptor.FD
	poller descriptor.Poller // of the goroutine that receives
	// next is the inlet that has replaced this one, where nothing arrives any more.
	next atomic.Pointer[inlet]

	// The receiver's mu is for these.
	lookup    lookup
	bound     bool // to a local address
	connected bool
	pair      Pair // that it is connected to
}

// openInlet opens an inlet that drops all packets, in the network namespace of the calling
// thread.
func openInlet() (*inlet, error) {
	fd, err := open(packet.ProtoIPIP, func(fd int) error {
		if err := setFilter(fd, dropAll()); err != nil {
			return err
		}
		discard(fd)
		return setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer)
	})
	if err != nil {
		return nil, err
	}
	return &inlet{fd: fd, poller: descriptor.NewPoller(fd)}, nil
}

// replace puts an inlet that is not connected in the place of the newest one, which is.
// There is no way back for that one: connect to AF_UNSPEC takes a raw socket off the list
// of those that receive, for good (__udp_disconnect in net/ipv4/udp.c).
//
// What the old one has received by then, Receive takes first. A packet that arrives when
// the new one takes packets already, and the old one still, is received twice.
func (r *Receiver) replace() error {
	old := r.last
	fresh, err := openInlet()
	if err != nil {
		return err
	}
	r.last = fresh
	err = errors.Join(sameNamespace(old.fd, fresh.fd), fresh.fd.Control(r.attach))
	if err == nil {
		err = old.fd.Control(disconnect)
	}
	if err != nil {
		r.last = old
		fresh.fd.Close()
		return err
	}
	waitForDelivery()
	r.settleSocketDrops(old)
	r.drops.socket = dropCount{}
	r.inlets = append(slices.DeleteFunc(r.inlets, (*inlet).closed), fresh)
	old.next.Store(fresh)
	// This ends a wait for packets (inet_shutdown in net/ipv4/af_inet.c), and fails with
	// ENOTCONN.
	_ = old.fd.Control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
	return nil
}

// closed reports whether the inlet is closed.
func (l *inlet) closed() bool {
	_, ok := l.fd.Acquire()
	if ok {
		l.fd.Release()
	}
	return !ok
}

// errNamespace is for a socket that would receive the packets of another network.
var errNamespace = errors.New("the calling thread is in another network namespace than the receiver")

// sameNamespace returns an error if two sockets are of different network namespaces, as far
// as the kernel can tell (Linux 5.14).
func sameNamespace(a, b *descriptor.FD) error {
	var cookies [2]uint64
	for i, f := range []*descriptor.FD{a, b} {
		err := f.Control(func(fd int) (err error) {
			cookies[i], err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
			return err
		})
		if errors.Is(err, unix.ENOPROTOOPT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	if cookies[0] != cookies[1] {
		return errNamespace
	}
	return nil
}
