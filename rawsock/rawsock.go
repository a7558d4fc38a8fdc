// Package rawsock is the network end of a tunnel: raw sockets that send and
// receive whole ipip packets, many in one system call.
//
// A [Receiver] is bound to the tunnel's local address and connected to the
// remote one, so that the kernel sorts the packets of several tunnels. A
// [Sender] has a socket of its own, of protocol 255, which receives nothing and
// so never has an ICMP error in its way (raw(7)).
package rawsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// BatchSize is the most packets that one Receive returns, and that a Sender
// holds until Flush.
const BatchSize = 64

// bufferSize is what a socket may hold for a goroutine that is late, in bytes of
// kernel memory. A packet of 1500 bytes takes about 2300.
const bufferSize = 8 << 20

// Config says between which hosts the packets travel.
type Config struct {
	Local  netip.Addr // IPv4; need not be on this host (yet)
	Remote netip.Addr // IPv4
	Device string     // if not empty, the device that packets leave by (O6)
	TOS    uint8      // by which the kernel chooses their route, without ECN bits; they have their own
}

// open returns a raw socket bound to the local address, in the network namespace of
// the calling thread.
func open(proto int, cfg Config) (*net.IPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			// The address may come later, with a lease or a failover.
			if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
				return os.NewSyscallError("setsockopt IP_FREEBIND", err)
			}
			return setTOS(fd, cfg.TOS)
		})
	}}
	conn, err := lc.ListenPacket(context.Background(), fmt.Sprintf("ip4:%d", proto), cfg.Local.String())
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open raw socket: %w: needs CAP_NET_RAW: run as root, or start the container with --cap-add NET_RAW", os.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	return conn.(*net.IPConn), nil
}

// setTOS has the socket's route lookups go by tos: that of each packet with
// IP_HDRINCL, and those of connect and of a path MTU (raw_sendmsg in net/ipv4/raw.c,
// ipv4_sk_update_pmtu in net/ipv4/route.c).
func setTOS(fd int, tos uint8) error {
	if tos == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TOS, int(tos)); err != nil {
		return os.NewSyscallError("setsockopt IP_TOS", err)
	}
	// That sets a priority within this host too, which no tunnel does.
	return os.NewSyscallError("setsockopt SO_PRIORITY", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 0))
}

// control runs f on the descriptor.
func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if ctlErr := c.Control(func(fd uintptr) { err = f(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

// setBuffer sets the size of a socket buffer: by force where CAP_NET_ADMIN
// allows it, and else as far as net.core.rmem_max or wmem_max goes.
func setBuffer(fd, force, plain int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bufferSize) == nil {
		return nil
	}
	return os.NewSyscallError("setsockopt SO_*BUF",
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, bufferSize))
}

func sockaddr(a netip.Addr) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.As4()}
}
