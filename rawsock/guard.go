package rawsock

import (
	"fmt"
	"net/netip"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/net/bpf"
)

// Guard is the socket of a tunnel that keeps the kernel from answering packets that the
// receivers have no room for, where those cannot do so themselves: see
// Receiver.NeedsGuard. It keeps no packet.
//
// The kernel answers a packet with ICMP 3/2 (protocol unreachable) when no socket took
// it, and passes over a socket whose buffer is full before it counts as a taker
// (raw_v4_input in net/ipv4/raw.c). A guard's buffer is always empty: a filter drops all
// packets, which are not charged then (sock_queue_rcv_skb_reason in net/core/sock.c). So
// an overload of the receivers is silent, as the kernel's own tunnel is.
//
// For its part, a guard costs a copy of each packet's metadata (skb_clone): see
// BenchmarkGuard. ICMP errors go to an ErrorSocket, which costs none.
type Guard struct {
	remote netip.Addr
	fd     *descriptor.FD
}

// NewGuard opens a guard in the network namespace of the calling thread. Until Connect the
// kernel also copies the packets of all other tunnels to it.
func NewGuard(cfg Config) (*Guard, error) {
	fd, err := open(packet.ProtoIPIP, cfg, func(fd int) error {
		if err := setFilter(fd, []bpf.Instruction{bpf.RetConstant{Val: drop}}); err != nil {
			return err
		}
		discard(fd)
		return setLookupDevice(fd, cfg.Device)
	})
	if err != nil {
		return nil, err
	}
	return &Guard{remote: cfg.Remote, fd: fd}, nil
}

// Connect limits the guard to packets from the remote host. It fails while there is no
// route to that, or no such local address.
func (g *Guard) Connect() error {
	return g.fd.Control(func(fd int) error { return connect(fd, g.remote) })
}

// SetDevice changes Config.Device for the following calls of Connect. Any goroutine may
// call it.
func (g *Guard) SetDevice(index int) error {
	return g.fd.Control(func(fd int) error { return setLookupDevice(fd, index) })
}

// Close closes the socket. Closing once more does nothing.
func (g *Guard) Close() error {
	if err := g.fd.Close(); err != nil {
		return fmt.Errorf("close guard socket: %w", err)
	}
	return nil
}
