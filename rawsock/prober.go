package rawsock

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// Prober asks for path MTUs by a socket of protocol 4, without netlink: RTM_GETROUTE of
// rtnetlink(7) cannot ask about that protocol, by which a rule may choose (ip rule add
// ipproto). One goroutine at a time may use it.
type Prober struct {
	fd     *descriptor.FD
	lookup lookup
}

// NewProber opens a prober in the network namespace of the calling thread.
func NewProber() (*Prober, error) {
	fd, err := open(packet.ProtoIPIP, func(fd int) error {
		if err := setFilter(fd, dropAll()); err != nil {
			return err
		}
		// From now on the kernel does not look at the socket for a packet (__udp_disconnect
		// in net/ipv4/udp.c), so that it costs none.
		return disconnect(fd)
	})
	if err != nil {
		return nil, err
	}
	return &Prober{fd: fd}, nil
}

// MTU returns the MTU in bytes of the route from r.Local to r.Remote by r.Device, r.TOS and
// r.Mark: what the device and the routers on the path are known to take (IP_MTU in ip(7)).
// Without r.Local, it is that of the route without a source. It fails while there is no
// route, or no such local address.
func (p *Prober) MTU(r Route) (mtu int, err error) {
	err = p.ask(r, func(fd int) error {
		mtu, err = getMTU(fd)
		return err
	})
	return mtu, err
}

// Path returns the MTU as the method MTU does, and the source address of the route: r.Local,
// or without that the one that the route has (O11).
func (p *Prober) Path(r Route) (mtu int, source netip.Addr, err error) {
	err = p.ask(r, func(fd int) error {
		name, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		if name, ok := name.(*unix.SockaddrInet4); ok {
			source = netip.AddrFrom4(name.Addr)
		}
		mtu, err = getMTU(fd)
		return err
	})
	return mtu, source, err
}

// ask calls f with the socket connected by r.
func (p *Prober) ask(r Route, f func(fd int) error) error {
	return p.fd.Control(func(fd int) error {
		err := p.connect(fd, r)
		if err == nil {
			err = f(fd)
		}
		return errors.Join(err, disconnect(fd)) // for the next question
	})
}

func (p *Prober) connect(fd int, r Route) error {
	if err := p.lookup.set(fd, r.lookup()); err != nil {
		return err
	}
	if err := bind(fd, r.Local); err != nil {
		return err
	}
	return connect(fd, r.Remote)
}

func getMTU(fd int) (int, error) {
	mtu, err := unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
	return mtu, os.NewSyscallError("getsockopt IP_MTU", err)
}

// Close closes the socket. Closing once more does nothing.
func (p *Prober) Close() error {
	if err := p.fd.Close(); err != nil {
		return fmt.Errorf("close prober: %w", err)
	}
	return nil
}
