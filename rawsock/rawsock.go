// Package rawsock is the network end of a tunnel: raw sockets that send and
// receive whole ipip packets, many in one system call.
//
// A [Receiver] is bound to the tunnel's local address and connected to the
// remote one, so that the kernel sorts the packets of several tunnels. A
// [Sender] has a socket of its own, of protocol 255, which receives nothing (raw(7)).
// Each tunnel has one [ErrorSocket], which receives the ICMP errors about its packets, and
// one [Guard], which keeps the kernel from answering packets that the receivers have no room
// for.
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
	// device holds its packets, even if the way is another by then. The kernel takes twice
	// as much, but the packet after that would overflow its count (sk_wmem_alloc).
	sendBuffer = 1 << 29
)

// Config describes the path of the packets.
type Config struct {
	Local  netip.Addr // IPv4; need not be on this host (yet)
	Remote netip.Addr // IPv4
	// Device is the index of the device that packets leave by, or 0 for the one that
	// the route leads to (O6). It does not limit what is received.
	Device int
	TOS    uint8  // for route lookups, without the ECN bits; packets have their own TOS
	Mark   uint32 // SO_MARK, for route lookups and filters; 0 for none
}

// open returns a raw socket bound to cfg.Local, in the network namespace of the
// calling thread. A raw socket receives as soon as socket(2) has returned, so prepare
// runs before bind.
func open(proto int, cfg Config, prepare func(fd int) error) (*descriptor.FD, error) {
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
	if err := f.Control(func(fd int) error { return setup(fd, cfg, prepare) }); err != nil {
		f.Close()
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	return f, nil
}

func setup(fd int, cfg Config, prepare func(fd int) error) error {
	if err := prepare(fd); err != nil {
		return err
	}
	// The address may come later, with a lease or a failover.
	if err := setOption(fd, unix.SOL_IP, unix.IP_FREEBIND, "IP_FREEBIND", 1); err != nil {
		return err
	}
	if err := setTOS(fd, cfg.TOS); err != nil {
		return err
	}
	if err := setMark(fd, cfg.Mark); err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(cfg.Local)))
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

// connect connects a socket to a host, which takes a route there and a local address.
func connect(fd int, remote netip.Addr) error {
	return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(remote)))
}

// setTOS makes the socket's route lookups use tos: that of each packet with
// IP_HDRINCL, and those of connect and of a path MTU (raw_sendmsg in net/ipv4/raw.c,
// ipv4_sk_update_pmtu in net/ipv4/route.c).
func setTOS(fd int, tos uint8) error {
	if tos == 0 {
		return nil
	}
	if err := setOption(fd, unix.SOL_IP, unix.IP_TOS, "IP_TOS", int(tos)); err != nil {
		return err
	}
	// IP_TOS sets the packets' priority within this host as well, which no tunnel does.
	return setOption(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, "SO_PRIORITY", 0)
}

// setMark marks the packets and route lookups of a socket.
func setMark(fd int, mark uint32) error {
	if mark == 0 {
		return nil
	}
	return setOption(fd, unix.SOL_SOCKET, unix.SO_MARK, "SO_MARK", int(int32(mark)))
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

func sockaddr(a netip.Addr) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.As4()}
}
