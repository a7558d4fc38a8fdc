package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// captureBuffer is the socket buffer, in bytes: what a burst may run ahead of the reader.
const captureBuffer = 16 << 20

// packetSocket is an AF_PACKET socket of type SOCK_DGRAM, which takes link headers off, on one device; see packet(7).
type packetSocket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
	oob  []byte
}

// openPacketSocket opens a socket in the calling thread's namespace. It returns when the socket receives.
func openPacketSocket(ifindex int) (*packetSocket, error) {
	// Protocol 0 receives nothing until bind, which is when the device is chosen too.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket AF_PACKET", err)
	}
	s := &packetSocket{file: os.NewFile(uintptr(fd), "AF_PACKET"), buf: make([]byte, math.MaxUint16), oob: make([]byte, 256)}
	if err := s.setUp(fd, ifindex); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func (s *packetSocket) setUp(fd, ifindex int) (err error) {
	for _, opt := range []struct {
		name              string
		level, opt, value int
	}{
		{"SO_TIMESTAMPNS_NEW", unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1},
		{"PACKET_AUXDATA", unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},
		{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer},
	} {
		if err := unix.SetsockoptInt(fd, opt.level, opt.opt, opt.value); err != nil {
			return os.NewSyscallError("setsockopt "+opt.name, err)
		}
	}
	// Beyond net.core.rmem_max, which needs CAP_NET_ADMIN in the initial user namespace: without it SO_RCVBUF must do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
	// Outgoing packets come to sockets of ETH_P_ALL only.
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: packet.NetworkOrder(unix.ETH_P_ALL), Ifindex: ifindex}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	s.raw, err = s.file.SyscallConn()
	return err
}

// read waits for the next IP packet, whose Data is valid until the next read. The error is [os.ErrClosed] after close.
func (s *packetSocket) read() (Captured, error) {
	for {
		var (
			n, oobn int
			sender  unix.Sockaddr
			recvErr error
		)
		err := s.raw.Read(func(fd uintptr) bool {
			n, oobn, _, sender, recvErr = unix.Recvmsg(int(fd), s.buf, s.oob, 0)
			return recvErr != unix.EAGAIN
		})
		if err != nil {
			return Captured{}, os.ErrClosed // Nothing else ends a read without deadline, by an error that has no name.
		}
		if recvErr != nil {
			return Captured{}, os.NewSyscallError("recvmsg", recvErr)
		}
		from := sender.(*unix.SockaddrLinklayer) // always, from AF_PACKET
		if from.Protocol != packet.NetworkOrder(unix.ETH_P_IP) && from.Protocol != packet.NetworkOrder(unix.ETH_P_IPV6) {
			continue
		}
		p := Captured{Outgoing: from.Pkttype == unix.PACKET_OUTGOING, LinkType: from.Hatype, Data: s.buf[:n]}
		if err := p.setControl(s.oob[:oobn]); err != nil {
			return Captured{}, fmt.Errorf("parse control messages: %w", err)
		}
		return p, nil
	}
}

// setControl takes over what the kernel says beside the packet.
func (p *Captured) setControl(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS_NEW:
			var stamp struct{ Sec, Nsec int64 } // struct __kernel_timespec
			if _, err := binary.Decode(m.Data, binary.NativeEndian, &stamp); err != nil {
				return err
			}
			p.Time = time.Unix(stamp.Sec, stamp.Nsec)
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA:
			var aux unix.TpacketAuxdata
			if _, err := binary.Decode(m.Data, binary.NativeEndian, &aux); err != nil {
				return err
			}
			p.CsumPartial = aux.Status&unix.TP_STATUS_CSUMNOTREADY != 0
		}
	}
	return nil
}

// drops returns how many packets the kernel had no room for since the last call.
func (s *packetSocket) drops() (n int, err error) {
	var stats *unix.TpacketStats
	var optErr error
	err = s.raw.Control(func(fd uintptr) {
		stats, optErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err != nil {
		return 0, err
	}
	if optErr != nil {
		return 0, os.NewSyscallError("getsockopt PACKET_STATISTICS", optErr)
	}
	return int(stats.Drops), nil
}

func (s *packetSocket) close() error { return s.file.Close() }
