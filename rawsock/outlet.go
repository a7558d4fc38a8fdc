package rawsock

import (
	"fmt"
	"net"
	"os"

	"goipip/internal/descriptor"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// newRawOutlet returns a socket for packets with their IP header, which the kernel
// routes.
func newRawOutlet(cfg Config) (*descriptor.FD, error) {
	return open(unix.IPPROTO_RAW, cfg, func(fd int) error { return setupRawOutlet(fd, cfg.Device) })
}

func setupRawOutlet(fd, device int) error {
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
	if device != 0 {
		if err := bindToDevice(fd, device); err != nil {
			return err
		}
	}
	return setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
}

// bindToDevice makes a socket send by the device with an index, or with 0 by any. The
// kernel does not check that there is such a device: without it, sending fails with
// ENODEV (sock_bindtoindex_locked in net/core/sock.c; Linux 5.1).
func bindToDevice(fd, index int) error {
	return setOption(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, "SO_BINDTOIFINDEX", index)
}

// ipProtocol is IP_PROTOCOL (linux/in.h). Without this control message the kernel
// looks IPsec policies and routes up for protocol 255, which a socket with IP_HDRINCL
// has, and packets would pass by a policy for protocol 4 (raw_sendmsg in
// net/ipv4/raw.c).
const ipProtocol = 52

// takesProtocol reports whether the kernel knows ipProtocol (Linux 6.4).
func takesProtocol(fd *descriptor.FD) bool {
	return fd.Control(func(fd int) error {
		_, err := unix.GetsockoptInt(fd, unix.SOL_IP, ipProtocol)
		return err
	}) == nil
}

// newPacketOutlet returns a socket for packets with a mark to a Hop. With protocol 0 it
// receives nothing (packet(7)).
func newPacketOutlet(mark uint32) (*descriptor.FD, error) {
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", os.NewSyscallError("socket", err))
	}
	fd, err := descriptor.New(socket)
	if err != nil {
		return nil, err
	}
	if err := fd.Control(func(fd int) error {
		if err := setMark(fd, mark); err != nil {
			return err
		}
		return setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	}); err != nil {
		fd.Close()
		return nil, fmt.Errorf("set up packet socket: %w", err)
	}
	return fd, nil
}
