package rawsock

import (
	"fmt"
	"os"
	"sync"

	"goipip/internal/descriptor"
	"goipip/internal/packet"
)

// Guard is a socket that keeps the kernel from answering ipip packets that receivers have
// no room for, where those cannot do so themselves: see Receiver.NeedsGuard. It keeps no
// packet. Any goroutine may call its methods.
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
	mu        sync.Mutex
	fd        *descriptor.FD
	closed    bool
	connected bool
	pair      Pair // that it is connected to
	lookup    lookup
}

// NewGuard opens a guard in the network namespace of the calling thread. Until Connect, it is
// for all ipip packets to this host, those of unknown pairs as well.
func NewGuard() (*Guard, error) {
	fd, err := openGuard()
	if err != nil {
		return nil, err
	}
	return &Guard{fd: fd}, nil
}

func openGuard() (*descriptor.FD, error) {
	return open(packet.ProtoIPIP, func(fd int) error {
		if err := setFilter(fd, dropAll()); err != nil {
			return err
		}
		discard(fd)
		return nil
	})
}

// Connect limits the guard to the packets of one pair. It fails while there is no route to
// the remote address by the Device, TOS and Mark of route, or no such local address; its
// other fields are not used. If nothing has changed since it succeeded, it does nothing. A
// guard that is connected to another pair is replaced as by Disconnect. For a pair with any
// local address it stays one for all packets.
func (g *Guard) Connect(p Pair, route Route) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return os.ErrClosed
	}
	if g.connected && g.pair == p && g.lookup == route.lookup() {
		return nil
	}
	if g.connected && g.pair != p {
		if err := g.replace(); err != nil {
			return err
		}
	}
	if p.anyLocal() {
		return nil
	}
	return g.fd.Control(func(fd int) error {
		if err := g.lookup.set(fd, route.lookup()); err != nil {
			return err
		}
		if !g.connected {
			if err := bind(fd, p.Local); err != nil {
				return err
			}
		}
		if err := connect(fd, p.Remote); err != nil {
			return err
		}
		g.connected, g.pair = true, p
		return nil
	})
}

// Disconnect makes the guard one for all ipip packets again. To do that it replaces the
// socket, and must be called in the guard's network namespace. Without a connection it does
// so at less cost.
func (g *Guard) Disconnect() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return os.ErrClosed
	}
	if g.connected {
		return g.replace()
	}
	return g.fd.Control(func(fd int) error { return bind(fd, anyAddr) })
}

// replace puts a new socket in the place of one that is connected, which cannot be undone:
// see Receiver.replace. At no time is there none.
func (g *Guard) replace() error {
	fd, err := openGuard()
	if err != nil {
		return err
	}
	if err := sameNamespace(g.fd, fd); err != nil {
		fd.Close()
		return err
	}
	old := g.fd
	g.fd, g.connected, g.lookup = fd, false, lookup{}
	return old.Close()
}

// Close closes the socket. Closing once more does nothing.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if err := g.fd.Close(); err != nil {
		return fmt.Errorf("close guard socket: %w", err)
	}
	return nil
}
