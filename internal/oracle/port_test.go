package oracle_test

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
)

// portBuffer is what a port holds of frames that nobody has read yet, in bytes.
// A window of packets takes much less.
const portBuffer = 8 << 20

// sendPatience is how long a device may have no room for another frame.
const sendPatience = 2 * time.Second

// port is the driver's end of a cable: it sends and receives whole Ethernet
// frames.
type port struct {
	dev string
	fd  int
	buf []byte
}

// openPort opens the device dev of host. See packet(7).
func openPort(host *netlab.Host, dev string) (*port, error) {
	link, err := host.Netlink().LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", dev, err)
	}
	p := &port{dev: dev, fd: -1, buf: make([]byte, 1<<16)}
	err = host.Do(func() (err error) {
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket AF_PACKET", err)
	})
	if err == nil {
		err = p.setUp(link.Attrs().Index)
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("open port %s: %w", dev, err)
	}
	return p, nil
}

func (p *port) setUp(ifindex int) error {
	for _, opt := range []struct {
		name              string
		level, opt, value int
	}{
		{"SO_RCVBUFFORCE", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, portBuffer},
		{"PACKET_IGNORE_OUTGOING", unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{"PACKET_QDISC_BYPASS", unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1}, // no queue that reorders
	} {
		if err := unix.SetsockoptInt(p.fd, opt.level, opt.opt, opt.value); err != nil {
			return os.NewSyscallError("setsockopt "+opt.name, err)
		}
	}
	all := uint16(unix.ETH_P_ALL)
	return os.NewSyscallError("bind", unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: ifindex}))
}

func (p *port) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// send sends one frame.
func (p *port) send(frame []byte) error {
	for start := time.Now(); ; {
		_, err := unix.Write(p.fd, frame)
		switch {
		case err == nil:
			return nil
		case err != unix.EAGAIN && err != unix.ENOBUFS || time.Since(start) > sendPatience:
			return fmt.Errorf("send %d bytes to %s: %w", len(frame), p.dev, err)
		}
		p.wait(unix.POLLOUT, time.Millisecond)
	}
}

// receive returns the next frame, valid until the next receive, or nil if there
// is none yet.
func (p *port) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(p.fd, p.buf, 0)
		switch err {
		case nil:
			return p.buf[:n], nil
		case unix.EAGAIN:
			return nil, nil
		case unix.EINTR:
		default:
			return nil, fmt.Errorf("receive from %s: %w", p.dev, err)
		}
	}
}

func (p *port) wait(events int16, d time.Duration) {
	waitAny([]unix.PollFd{{Fd: int32(p.fd), Events: events}}, d)
}

// waitAny returns when one of the descriptors is ready, or after d. An error of
// poll is a return too: the caller looks for itself.
func waitAny(fds []unix.PollFd, d time.Duration) {
	_, _ = unix.Poll(fds, max(1, int(d.Milliseconds())))
}
