package rawsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Sender sends a tunnel's packets in batches. One goroutine at a time may use
// it.
type Sender struct {
	conn *net.IPConn
	raw  syscall.RawConn

	batch   batch
	n, next int // messages added, and those of them that the kernel has seen
	refused func(i int, why Refusal)
	send    func(fd uintptr) bool // s.sendmmsg, bound once: binding allocates
}

// NewSender opens a sender in the network namespace of the calling thread.
// Flush calls refused for each message that the kernel does not take, by its
// place in the order of Add.
func NewSender(cfg Config, refused func(i int, why Refusal)) (*Sender, error) {
	conn, err := open(unix.IPPROTO_RAW, cfg)
	if err != nil {
		return nil, err
	}
	s := &Sender{
		conn:    conn,
		batch:   newBatch(BatchSize, 2),
		refused: refused,
	}
	s.send = s.sendmmsg
	s.batch.setName(sockaddr(cfg.Remote))
	if err := s.setup(cfg.Device); err != nil {
		conn.Close()
		return nil, fmt.Errorf("set up sending socket: %w", err)
	}
	return s, nil
}

func (s *Sender) setup(device string) (err error) {
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return err
	}
	if _, err = ipv4.NewRawConn(s.conn); err != nil { // sets IP_HDRINCL
		return err
	}
	return control(s.raw, func(fd int) error {
		if err := setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF); err != nil {
			return err
		}
		// Without IP_RECVERR the kernel calls a packet sent that a full queue
		// dropped (raw_send_hdrinc in net/ipv4/raw.c). What it then also leaves on
		// the error queue nobody reads: it may take the smallest buffer there is.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil {
			return os.NewSyscallError("setsockopt IP_RECVERR", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
			return os.NewSyscallError("setsockopt SO_RCVBUF", err)
		}
		if device == "" {
			return nil
		}
		if err := unix.BindToDevice(fd, device); err != nil {
			return fmt.Errorf("bind to device %s: %w", device, err)
		}
		return nil
	})
}

// Add appends one packet to the batch: header, with the whole outer header and
// perhaps more, then payload. Both belong to the Sender until Flush; the batch
// must not be full.
func (s *Sender) Add(header, payload []byte) {
	s.batch.set(s.n, 0, header)
	s.batch.set(s.n, 1, payload)
	s.n++
}

// Len returns the number of packets in the batch.
func (s *Sender) Len() int { return s.n }

// Flush hands the batch to the kernel, in order, waits while the socket's buffer
// is full, and leaves an empty batch. A packet that the kernel does not take is
// not an error: it is reported to the function given to NewSender, and the
// others go on. The only error is os.ErrClosed, after Close.
func (s *Sender) Flush() error {
	s.next = 0
	err := s.raw.Write(s.send)
	s.n = 0
	if err != nil {
		return os.ErrClosed
	}
	return nil
}

func (s *Sender) sendmmsg(fd uintptr) bool {
	for s.next < s.n {
		n, errno := s.batch.sendmmsg(fd, s.next, s.n)
		switch errno {
		case 0:
			s.next += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default: // about the first message; those before it were sent
			s.refused(s.next, refusalOf(errno))
			s.next++
		}
	}
	return true
}

// Close closes the socket and ends a Flush that waits.
func (s *Sender) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close sending socket: %w", err)
	}
	return nil
}
