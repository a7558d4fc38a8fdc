package rawsock

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// slotSize is the room for one packet, in bytes. It must hold the largest: a
// kernel that merged segments returns them as one packet of up to 64 KiB.
const slotSize = 1 << 16

// Receiver receives a tunnel's packets. One goroutine at a time may Receive.
type Receiver struct {
	cfg    Config
	share  []bpf.Instruction // nil for the only receiver
	fd     *descriptor.FD
	credit *credit // nil where the socket's buffer is the limit

	noCredit error // why there is none

	poller  descriptor.Poller
	buf     []byte
	batch   batch
	packets []packet.IPv4

	drops dropCount
	unmap sync.Once
}

// NewReceiver opens a receiver in the network namespace of the calling thread, for the
// packets from cfg.Remote to cfg.Local. Of several receivers of one tunnel, each has
// one share of shares, so that together they get each packet once: packets of one inner
// flow (addresses and ports) stay together, and fragments go by their addresses alone.
// A single receiver is share 0 of 1.
//
// Until Connect the kernel also copies the packets of all other tunnels to this socket,
// where a filter drops them.
func NewReceiver(cfg Config, share, shares int) (*Receiver, error) {
	r := &Receiver{
		cfg:     cfg,
		buf:     make([]byte, BatchSize*slotSize),
		batch:   newBatch(BatchSize, 1),
		packets: make([]packet.IPv4, 0, BatchSize),
	}
	if shares > 1 {
		r.share = shareFilter(uint32(share), uint32(shares))
	}
	fd, err := open(packet.ProtoIPIP, cfg, r.prepare)
	if err != nil {
		return nil, err
	}
	r.noCredit = fd.Control(func(fd int) (err error) {
		r.credit, err = newCredit(fd, cfg, share, shares)
		return err
	})
	r.fd = fd
	r.poller = descriptor.NewPoller(fd)
	for i := range BatchSize {
		r.batch.set(i, 0, r.slot(i))
	}
	return r, nil
}

func (r *Receiver) prepare(fd int) error {
	rest := r.share
	if rest == nil {
		rest = keepAll()
	}
	if err := setFilter(fd, peerFilter(r.cfg, rest)); err != nil {
		return err
	}
	discard(fd)
	if err := setLookupDevice(fd, r.cfg.Device); err != nil {
		return err
	}
	return setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer)
}

func (r *Receiver) slot(i int) []byte { return r.buf[i*slotSize : (i+1)*slotSize] }

// Connect makes the kernel give this socket only the packets from cfg.Remote. It
// fails while there is no route to it, or no such local address. One goroutine at a
// time may call it.
func (r *Receiver) Connect() error {
	return r.fd.Control(func(fd int) error {
		if err := connect(fd, r.cfg.Remote); err != nil {
			return err
		}
		if r.credit != nil {
			return nil // its filter knows the addresses
		}
		if r.share == nil {
			return removeFilter(fd)
		}
		return setFilter(fd, r.share)
	})
}

// NeedsGuard returns nil if the socket takes each packet, or drops it by its filter, so
// that the kernel never answers one with ICMP 3/2, or else why a [Guard] must take what
// it has no room for: a filter that counts needs CAP_BPF and CAP_NET_ADMIN in the initial
// user namespace, and Linux 5.5.
func (r *Receiver) NeedsGuard() error { return r.noCredit }

// PathMTU connects again and returns the MTU of the route in bytes, which is at most
// what the device and the routers on the path are known to take (IP_MTU in ip(7)). This
// is the lookup for a packet of the tunnel: RTM_GETROUTE of rtnetlink(7) cannot ask
// about protocol 4, by which a rule may choose (ip rule add ipproto). Any goroutine may
// call it.
func (r *Receiver) PathMTU() (mtu int, err error) {
	err = r.fd.Control(func(fd int) error {
		if err := connect(fd, r.cfg.Remote); err != nil {
			return err
		}
		mtu, err = unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
		return os.NewSyscallError("getsockopt IP_MTU", err)
	})
	return mtu, err
}

// SetDevice changes Config.Device for the following calls of Connect. Any goroutine may
// call it.
func (r *Receiver) SetDevice(index int) error {
	return r.fd.Control(func(fd int) error { return setLookupDevice(fd, index) })
}

// Receive waits until there is a packet and returns it with all others that are
// there already, at most BatchSize, each from its outer header on. They are valid
// until the next Receive, and may be changed until then. It returns os.ErrClosed
// after Close. ICMP errors do not end it; an ErrorSocket receives them.
func (r *Receiver) Receive() ([]packet.IPv4, error) {
	fd, ok := r.fd.Acquire()
	if !ok {
		return nil, os.ErrClosed
	}
	defer r.fd.Release()
	r.packets = r.packets[:0]
	for r.poller.Begin(); ; {
		errno := r.take(fd)
		switch n := len(r.packets); {
		case fatal(errno):
			return nil, os.NewSyscallError("recvmmsg", errno)
		case n == 1, n == BatchSize: // one alone does not wait for company
			return r.packets, nil
		case r.poller.Again():
		case n > 0:
			return r.packets, nil
		case errno == unix.EAGAIN && !r.poller.Wait():
			return nil, os.ErrClosed
		}
	}
}

// take appends what is there.
func (r *Receiver) take(fd int) syscall.Errno {
	have := len(r.packets)
	n, errno := r.batch.recvmmsg(fd, have)
	if errno == 0 {
		bytes := 0
		for i := have; i < have+n; i++ {
			p := r.slot(i)[:r.batch.len(i)]
			r.packets = append(r.packets, p)
			bytes += len(p)
		}
		if r.credit != nil {
			r.credit.consume(n, bytes)
		}
		return 0
	}
	// Other than EAGAIN and fatal, it is EINTR, no memory for the moment, or an ICMP
	// error that waited on the socket (sk_err), as a connected socket gets without
	// IP_RECVERR too. The call has taken it away, so that one call is wasted, and no
	// packet.
	return errno
}

// fatal reports whether repeating the call is pointless.
func fatal(errno syscall.Errno) bool {
	switch errno {
	case unix.EBADF, unix.ENOTSOCK, unix.EFAULT, unix.EINVAL:
		return true
	}
	return false
}

// Close closes the socket and ends a Receive that waits.
func (r *Receiver) Close() error {
	r.Drops() // for the last time
	err := r.fd.Close()
	if r.credit != nil {
		r.unmap.Do(func() { err = errors.Join(err, r.credit.close()) }) // nobody uses it any more
	}
	if err != nil {
		return fmt.Errorf("close receiving socket: %w", err)
	}
	return nil
}
