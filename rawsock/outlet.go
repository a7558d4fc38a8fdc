package rawsock

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"goipip/internal/descriptor"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// newRawOutlet returns a socket for packets with their IP header, which the kernel
// routes. It is bound to local, if that is not the zero Addr.
func newRawOutlet(local netip.Addr) (*descriptor.FD, error) {
	out, err := open(unix.IPPROTO_RAW, setupRawOutlet)
	if err != nil || !local.IsValid() {
		return out, err
	}
	if err := out.Control(func(fd int) error { return bind(fd, local) }); err != nil {
		out.Close()
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	return out, nil
}

func setupRawOutlet(fd int) error {
	if err := lend(fd, func(conn *net.IPConn) error {
		_, err := ipv4.NewRawConn(conn) // sets IP_HDRINCL
		return err
	}); err != nil {
		return err
	}
	// Without IP_RECVERR the kernel calls a packet sent that a full queue dropped
	// (raw_send_hdrinc in net/ipv4/raw.c). What it then also leaves on the error
	// queue is of no use, so that gets the smallest buffer there is.
	if err := setOption(fd, unix.SOL_IP, unix.IP_RECVERR, "IP_RECVERR", 1); err != nil {
		return err
	}
	if err := setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, "SO_RCVBUF", 0); err != nil {
		return err
	}
	return setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
}

// newPacketOutlet returns a socket for packets to a Hop. With protocol 0 it receives
// nothing (packet(7)).
func newPacketOutlet() (*descriptor.FD, error) {
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", os.NewSyscallError("socket", err))
	}
	fd, err := descriptor.New(socket)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := fd.Control(func(fd int) error {
		return setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	}); err != nil {
		fd.Close()
		return nil, fmt.Errorf("set up packet socket: %w", err)
	}
	return fd, nil
}
