package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"

	"goipip/internal/packet"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// socketBuffer is what packets may take while they wait for this program, in bytes.
	socketBuffer = 16 << 20
	// longest is the longest packet that is captured whole, in bytes. It is tcpdump's, too.
	longest = 256 << 10
	// downInterval is how often a device that went down is looked at. The kernel tells a
	// socket that a device went down, but not that it is deleted then (packet_notifier in
	// net/packet/af_packet.c).
	downInterval = 50 * time.Millisecond
)

// socket is a packet socket on one device, which takes link headers off (packet(7)).
type socket struct {
	device string
	index  int
	file   *os.File
	raw    syscall.RawConn
	buf    []byte
	oob    []byte
}

// openSocket opens a socket that receives what a device has of a protocol and a filter keeps;
// a nil filter keeps all.
func openSocket(device string, index, protocol int, filter []bpf.Instruction) (*socket, error) {
	// Protocol 0 receives nothing before bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket AF_PACKET", err)
	}
	s := &socket{device: device, index: index, file: os.NewFile(uintptr(fd), "AF_PACKET"), buf: make([]byte, longest), oob: make([]byte, 64)}
	if err := s.setUp(fd, protocol, filter); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setUp(fd, protocol int, filter []bpf.Instruction) (err error) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1) // Linux 5.1; see timeOf
	// The first goes beyond net.core.rmem_max, and needs CAP_NET_ADMIN.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	}
	if err := attach(fd, filter); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: packet.NetworkOrder(uint16(protocol)), Ifindex: s.index}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	s.raw, err = s.file.SyscallConn()
	return err
}

// attach has the kernel run a filter.
func attach(fd int, filter []bpf.Instruction) error {
	if filter == nil {
		return nil
	}
	program, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	var code []unix.SockFilter
	for _, i := range program {
		code = append(code, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER",
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}))
}

// setPromiscuous makes the device promiscuous until the socket is closed.
func (s *socket) setPromiscuous() error {
	return s.control(func(fd int) error {
		return os.NewSyscallError("setsockopt PACKET_ADD_MEMBERSHIP",
			unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(s.index), Type: unix.PACKET_MR_PROMISC}))
	})
}

// run sends packets until ctx is done or the device is gone.
func (s *socket) run(ctx context.Context, packets chan<- Packet) error {
	for {
		p, err := s.read()
		switch {
		case err == nil:
			packets <- p
		case errors.Is(err, unix.ENETDOWN):
			// What it received before is still to be read.
			_ = s.file.SetReadDeadline(time.Now().Add(downInterval))
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() != nil || s.gone() {
				return nil
			}
			_ = s.file.SetReadDeadline(time.Now().Add(downInterval))
		default:
			return err
		}
	}
}

// interrupt ends run, if its ctx is done.
func (s *socket) interrupt() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }

// read waits for a packet of IP, which the caller owns.
func (s *socket) read() (p Packet, err error) {
	for {
		var (
			n, oobn int
			from    unix.Sockaddr
			recvErr error
		)
		err := s.raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, recvErr = unix.Recvmsg(int(fd), s.buf, s.oob, unix.MSG_TRUNC) // the whole packet's length
			return recvErr != unix.EAGAIN
		})
		if err != nil {
			return Packet{}, err
		}
		if recvErr != nil {
			return Packet{}, os.NewSyscallError("recvmsg", recvErr)
		}
		a, ok := from.(*unix.SockaddrLinklayer)
		if !ok || a.Protocol != packet.NetworkOrder(unix.ETH_P_IP) && a.Protocol != packet.NetworkOrder(unix.ETH_P_IPV6) {
			continue
		}
		return Packet{
			Time:      timeOf(s.oob[:oobn]),
			Interface: s.device,
			Out:       a.Pkttype == unix.PACKET_OUTGOING,
			Data:      bytes.Clone(s.buf[:min(n, len(s.buf))]),
			Length:    n,
		}, nil
	}
}

// timeOf returns when the kernel saw a packet, or else the time now.
func timeOf(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		var stamp struct{ Sec, Nsec int64 } // struct __kernel_timespec
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SO_TIMESTAMPNS_NEW {
			continue
		}
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &stamp); err == nil {
			return time.Unix(stamp.Sec, stamp.Nsec)
		}
	}
	return time.Now()
}

// gone reports whether the device was deleted, or is in another network namespace now: the
// kernel unbinds the socket then.
func (s *socket) gone() (gone bool) {
	err := s.control(func(fd int) error {
		a, err := unix.Getsockname(fd)
		if bound, ok := a.(*unix.SockaddrLinklayer); ok {
			gone = bound.Ifindex != s.index
		}
		return err
	})
	return gone || err != nil
}

// drops returns how many packets found no room in the buffer.
func (s *socket) drops() (n uint64) {
	_ = s.control(func(fd int) error {
		stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			n = uint64(stats.Drops)
		}
		return err
	})
	return n
}

func (s *socket) control(f func(fd int) error) (err error) {
	if controlErr := s.raw.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

func (s *socket) close() { s.file.Close() }
