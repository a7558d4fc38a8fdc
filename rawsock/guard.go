package rawsock

import (
	"fmt"
	"net/netip"
	"os"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ErrorBatch is the most ICMP errors that one ReadErrors handles.
const ErrorBatch = 32

// guardBuffer is the size of a guard's receive buffer in bytes, before the kernel
// doubles it: room for some hundred ICMP errors. Only a net.core.rmem_max below that
// makes it smaller.
const guardBuffer = 128 << 10

// Guard is the socket of a tunnel that hears ICMP errors about its packets, and that
// counts as the taker of each packet that arrives, of which it keeps none.
//
// The kernel answers a packet with ICMP 3/2 (protocol unreachable) when no socket took
// it, and passes over a socket whose buffer is full before it counts as a taker
// (raw_v4_input in net/ipv4/raw.c). A guard's buffer hardly ever becomes full: a filter
// drops all packets, which are not charged then (sock_queue_rcv_skb_reason in
// net/core/sock.c), and an ICMP error is queued only if the buffer is not full with it
// (sock_queue_err_skb in net/core/skbuff.c; of several CPUs at the same time, each may
// add one more). So an overload of the receivers is silent, as the kernel's own tunnel
// is.
//
// ICMP errors share no buffer with packets, and what does not fit the guard's is lost. Of
// a flood of them a receiver notices a call that returns early (raw_err in
// net/ipv4/raw.c), and loses nothing.
//
// For its part, a guard costs a copy of each packet's metadata (skb_clone): see
// BenchmarkGuard.
type Guard struct {
	remote netip.Addr
	fd     *descriptor.FD
	errors errorQueue
}

// NewGuard opens a guard in the network namespace of the calling thread. It hears
// nothing until Connect.
func NewGuard(cfg Config) (*Guard, error) {
	fd, err := open(packet.ProtoIPIP, cfg, func(fd int) error {
		if err := setFilter(fd, []bpf.Instruction{bpf.RetConstant{Val: drop}}); err != nil {
			return err
		}
		discard(fd)
		if err := setLookupDevice(fd, cfg.Device); err != nil {
			return err
		}
		return setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, "SO_RCVBUF", guardBuffer)
	})
	if err != nil {
		return nil, err
	}
	g := &Guard{remote: cfg.Remote, fd: fd}
	g.errors.init()
	return g, nil
}

// Connect looks up the route to the remote host, with the device, TOS and mark of the
// socket and protocol 4, and makes the guard hear the ICMP errors about packets to it. It
// fails while there is no route, or no such local address; a guard that was connected
// before remains so. It may be called again, by any goroutine.
func (g *Guard) Connect() error { return g.fd.Control(g.connect) }

func (g *Guard) connect(fd int) error {
	if err := unix.Connect(fd, sockaddr(g.remote)); err != nil {
		return os.NewSyscallError("connect", err)
	}
	// Before connect, this would let it hear the errors about all other tunnels'
	// packets (raw_err in net/ipv4/raw.c).
	return setOption(fd, unix.SOL_IP, unix.IP_RECVERR, "IP_RECVERR", 1)
}

// PathMTU connects again and returns the MTU of the route in bytes, which is at most
// what the device and the routers on the path are known to take (IP_MTU in ip(7)). This
// is the lookup for a packet of the tunnel: RTM_GETROUTE of rtnetlink(7) cannot ask
// about protocol 4, by which a rule may choose (ip rule add ipproto).
func (g *Guard) PathMTU() (mtu int, err error) {
	err = g.fd.Control(func(fd int) error {
		if err := g.connect(fd); err != nil {
			return err
		}
		mtu, err = unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
		return os.NewSyscallError("getsockopt IP_MTU", err)
	})
	return mtu, err
}

// SetDevice changes Config.Device for the following calls of Connect and PathMTU. Any
// goroutine may call it.
func (g *Guard) SetDevice(index int) error {
	return g.fd.Control(func(fd int) error { return setLookupDevice(fd, index) })
}

// ICMPError is an ICMP error about a packet that the tunnel sent.
type ICMPError struct {
	Type, Code uint8      // RFC 792
	MTU        int        // of the next hop, in bytes, for a packet that was too big
	Offender   netip.Addr // the host that sent it
	// Inner is how much of the inner packet the message quotes, from its IP header
	// on: 8 bytes at least from most routers, perhaps nothing.
	Inner packet.IPv4
}

// ReadErrors waits until there is an ICMP error, calls handle for those that are there,
// at most ErrorBatch, and returns nil. An ICMPError's Inner is valid during the call.
// After Close it returns os.ErrClosed. One goroutine at a time may call it.
func (g *Guard) ReadErrors(handle func(ICMPError)) error {
	fd, ok := g.fd.Acquire()
	if !ok {
		return os.ErrClosed
	}
	defer g.fd.Release()
	for g.handleErrors(fd, handle) == 0 {
		clearError(fd)
		if !g.fd.Wait(descriptor.Err) {
			return os.ErrClosed
		}
	}
	return nil
}

// handleErrors calls handle for at most ErrorBatch errors, and returns for how many.
func (g *Guard) handleErrors(fd int, handle func(ICMPError)) (n int) {
	for n < ErrorBatch {
		e, ok, errno := g.errors.read(fd)
		switch {
		case ok:
			handle(e)
			n++
		case errno != 0 && errno != unix.EINTR:
			return n // EAGAIN: there are no more
		}
	}
	return n
}

// Close closes the socket and ends a ReadErrors that waits.
func (g *Guard) Close() error {
	if err := g.fd.Close(); err != nil {
		return fmt.Errorf("close guard socket: %w", err)
	}
	return nil
}
