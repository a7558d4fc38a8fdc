package rawsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// outlet is a socket that sends, and that Go's poller does not watch. To the
// poller, the kernel reports each packet that has left the socket (sock_wfree in
// net/core/sock.c), which cost a fifth of the throughput. A full socket is rare,
// and waited for by poll(2).
type outlet struct {
	file   *os.File
	raw    syscall.RawConn
	poll   [1]unix.PollFd
	closed atomic.Bool
}

// pollTime is how long an outlet waits before it looks whether it was closed, in
// milliseconds.
const pollTime = 100

// newRawOutlet returns an outlet for packets with their IP header, which the
// kernel finds the way for.
func newRawOutlet(cfg Config) (*outlet, error) {
	conn, err := open(unix.IPPROTO_RAW, cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := ipv4.NewRawConn(conn); err != nil { // sets IP_HDRINCL
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var o *outlet
	err = control(raw, func(fd int) error {
		// Without IP_RECVERR the kernel calls a packet sent that a full queue
		// dropped (raw_send_hdrinc in net/ipv4/raw.c). What it then also leaves on
		// the error queue nobody reads: it may take the smallest buffer there is.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil {
			return os.NewSyscallError("setsockopt IP_RECVERR", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
			return os.NewSyscallError("setsockopt SO_RCVBUF", err)
		}
		if cfg.Device != "" {
			if err := unix.BindToDevice(fd, cfg.Device); err != nil {
				return fmt.Errorf("bind to device %s: %w", cfg.Device, err)
			}
		}
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		o, err = newOutlet(fd, "raw socket")
		return err
	})
	return o, err
}

// newPacketOutlet returns an outlet for packets to a Hop.
func newPacketOutlet() (*outlet, error) {
	// With protocol 0 it receives nothing (packet(7)).
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", os.NewSyscallError("socket", err))
	}
	return newOutlet(fd, "packet socket")
}

// newOutlet takes fd over, also with an error.
func newOutlet(fd int, name string) (*outlet, error) {
	// os.NewFile gives to the poller what does not block. Each call says itself that
	// it does not wait.
	err := unix.SetNonblock(fd, false)
	if err == nil {
		err = setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up %s: %w", name, err)
	}
	o := &outlet{file: os.NewFile(uintptr(fd), name)}
	o.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	if o.raw, err = o.file.SyscallConn(); err != nil {
		o.file.Close()
		return nil, err
	}
	return o, nil
}

// write calls send until it reports true, and waits in between until the socket
// has room. The error is os.ErrClosed, after close.
func (o *outlet) write(send func(fd uintptr) bool) error {
	if o.raw.Write(send) != nil {
		return os.ErrClosed
	}
	return nil
}

// wait waits until the socket has room, within write. It reports false once the
// outlet is closed.
func (o *outlet) wait() bool {
	// An error here, EINTR, comes to light in the next send.
	_, _ = unix.Poll(o.poll[:], pollTime)
	return !o.closed.Load()
}

// close ends a write that waits.
func (o *outlet) close() error {
	o.closed.Store(true)
	if err := o.file.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close sending socket: %w", err)
	}
	return nil
}
