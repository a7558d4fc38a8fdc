// Package rawsock is the network end of ipip tunnels: raw sockets that send and receive
// whole outer packets, many in one system call, for any number of pairs of outer
// addresses.
//
// A worker has one [Sender], each of whose messages goes to a [Target] of its own, and one
// [Receiver], which takes the packets of all pairs that were added to it. The sender's
// sockets receive nothing. A network namespace has one [ErrorSocket], which receives the
// ICMP errors about packets of the tunnels, one [Guard] where receivers need it, and one
// [Prober], which asks for path MTUs.
//
// Sockets belong to the network namespace of the thread that opens them. Senders and
// receivers belong to one goroutine each; what controls them (Target.Set, Receiver.Add and
// so on) may be called by any goroutine.
package rawsock

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"goipip/internal/descriptor"

	"golang.org/x/sys/unix"
)

// BatchSize is the most packets that one Receive returns, and that a Sender
// holds until Flush.
const BatchSize = 64

// Sizes of socket buffers in bytes, before the kernel doubles them.
const (
	// receiveBuffer holds what arrives while the receiving goroutine is late. A packet
	// of 1500 bytes takes about 2300.
	receiveBuffer = 8 << 20
	// sendBuffer is more than queueing disciplines hold, so that they alone decide what
	// is too much, as with the kernel's own tunnel: a smaller one stays full while a slow
	// device holds its packets, even after the route has changed. The kernel takes twice
	// as much, but the packet after that would overflow its count (sk_wmem_alloc).
	sendBuffer = 1 << 29
)

// Pair is the outer addresses of a tunnel, both IPv4: packets from Remote to Local are
// received, and those from Local to Remote sent.
type Pair struct {
	Local  netip.Addr // need not be on this host (yet); the zero Addr for any (O11)
	Remote netip.Addr
}

// anyLocal reports whether p is for any local address. Such a socket cannot be connected,
// since that would fix the address.
func (p Pair) anyLocal() bool { return !p.Local.IsValid() }

// Route is how packets to one peer leave this host.
type Route struct {
	// Local is the source by which the route is looked up, 0.0.0.0 for none. The zero Addr is
	// for the address that the Sender is bound to; with a Device, the lookup then has no
	// source.
	Local  netip.Addr
	Remote netip.Addr // IPv4; a Route without it is none
	// Device is the index of the only device that packets may leave by, or 0 for the one
	// that the route leads to (O6).
	Device int
	// TOS is for the lookup, without the ECN bits; packets have their own TOS (O4).
	TOS uint8
	// Mark is for the lookup and for filters, as SO_MARK in socket(7); 0 for none (O10).
	Mark uint32
	// Hop is the next hop if packets are to leave by the packet socket; with nil they
	// leave by the raw socket, and the kernel routes them.
	Hop *Hop
}

// Hop is a next hop: a neighbour on an Ethernet.
type Hop struct {
	Device int     // index of the device that leads there
	Addr   [6]byte // link-layer address
}

// lookup is what a socket's options add to its route lookups.
type lookup struct {
	device int
	tos    uint8
	mark   uint32
}

func (r Route) lookup() lookup { return lookup{r.Device, r.TOS, r.Mark} }

// set changes the options of a socket, which has those of l, to want.
func (l *lookup) set(fd int, want lookup) error {
	if l.tos != want.tos {
		if err := setTOS(fd, want.tos); err != nil {
			return err
		}
		l.tos = want.tos
	}
	if l.mark != want.mark {
		if err := setOption(fd, unix.SOL_SOCKET, unix.SO_MARK, "SO_MARK", int(int32(want.mark))); err != nil {
			return err
		}
		l.mark = want.mark
	}
	if l.device != want.device {
		if err := setLookupDevice(fd, want.device); err != nil {
			return err
		}
		l.device = want.device
	}
	return nil
}

// open returns a raw socket of the network namespace of the calling thread. It is not
// bound: prepare runs first, since a raw socket receives as soon as socket(2) has returned.
func open(proto int, prepare func(fd int) error) (*descriptor.FD, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open raw socket: %w: needs CAP_NET_RAW: run as root, or start the container with --cap-add NET_RAW", os.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", os.NewSyscallError("socket", err))
	}
	f, err := descriptor.New(socket)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	if err := f.Control(func(fd int) error {
		if err := prepare(fd); err != nil {
			return err
		}
		// A local address may come later, with a lease or a failover.
		return setOption(fd, unix.SOL_IP, unix.IP_FREEBIND, "IP_FREEBIND", 1)
	}); err != nil {
		f.Close()
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	return f, nil
}

// lend calls f with a duplicate of a raw socket, as x/net/ipv4 takes it.
func lend(fd int, f func(*net.IPConn) error) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	file := os.NewFile(uintptr(dup), "raw socket")
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(conn.(*net.IPConn))
}

// anyAddr is 0.0.0.0, to which bind(2) undoes another bind(2). A socket that is connected
// cannot be bound (raw_bind in net/ipv4/raw.c).
var anyAddr = netip.IPv4Unspecified()

func bind(fd int, local netip.Addr) error {
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(local)))
}

// connect connects a socket to a host, which takes a route there and a local address.
func connect(fd int, remote netip.Addr) error {
	return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(remote)))
}

// setTOS makes the socket's route lookups use tos: that of connect, and that of a path MTU
// from an ICMP error (ipv4_sk_update_pmtu in net/ipv4/route.c).
func setTOS(fd int, tos uint8) error {
	if err := setOption(fd, unix.SOL_IP, unix.IP_TOS, "IP_TOS", int(tos)); err != nil {
		return err
	}
	// IP_TOS sets the packets' priority within this host as well, which no tunnel does.
	return setOption(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, "SO_PRIORITY", 0)
}

// setLookupDevice makes the route lookup of connect(2) use a device (O6), without a
// limit to what the socket receives, which binding to the device would set
// (__ip4_datagram_connect in net/ipv4/datagram.c, raw_v4_match in net/ipv4/raw.c).
// Index 0 is for no device. A socket that is connected stays as it is.
func setLookupDevice(fd, index int) error {
	// In network byte order (ip(7)).
	order := [4]byte{byte(index >> 24), byte(index >> 16), byte(index >> 8), byte(index)}
	return os.NewSyscallError("setsockopt IP_UNICAST_IF", unix.SetsockoptInet4Addr(fd, unix.SOL_IP, unix.IP_UNICAST_IF, order))
}

// setBuffer sets the size of a socket buffer in bytes: by force where CAP_NET_ADMIN
// in the initial user namespace allows it, and otherwise as far as net.core.rmem_max
// or wmem_max permits. The kernel doubles it.
func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return setOption(fd, unix.SOL_SOCKET, plain, "SO_*BUF", size)
}

func setOption(fd, level, option int, name string, value int) error {
	return os.NewSyscallError("setsockopt "+name, unix.SetsockoptInt(fd, level, option, value))
}

// sockaddr takes the zero Addr for 0.0.0.0.
func sockaddr(a netip.Addr) *unix.SockaddrInet4 {
	if !a.IsValid() {
		a = anyAddr
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}
