package rawsock

import (
	"errors"
	"fmt"
	"os"

	"goipip/internal/descriptor"
	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// Prober asks for path MTUs by a socket, without netlink: RTM_GETROUTE of rtnetlink(7)
// cannot ask about protocol 4, by which a rule may choose (ip rule add ipproto). One
// goroutine at a time may use it.
type Prober struct {
	fd     *descriptor.FD // of protocol 255, which receives nothing (raw(7))
	lookup lookup
}

// NewProber opens a prober in the network namespace of the calling thread.
func NewProber() (*Prober, error) {
	fd, err := open(unix.IPPROTO_RAW, func(int) error { return nil })
	if err != nil {
		return nil, err
	}
	return &Prober{fd: fd}, nil
}

// MTU returns the MTU in bytes of the route from r.Local to r.Remote by r.Device, r.TOS and
// r.Mark: what the device and the routers on the path are known to take (IP_MTU in ip(7)).
// It fails while there is no route, or no such local address. A Local that is the zero Addr
// is for none.
//
// By protocol, the lookup is one for a packet of protocol 4, as only a rule by protocol
// makes a difference to. That takes a socket which receives, so that each costs all ipip
// packets of the network namespace a little, and MTU must then be called in it.
func (p *Prober) MTU(r Route, byProtocol bool) (mtu int, err error) {
	if !byProtocol {
		err = p.fd.Control(func(fd int) error {
			mtu, err = askMTU(fd, &p.lookup, r)
			return errors.Join(err, disconnect(fd)) // for the next question
		})
		return mtu, err
	}
	f, err := open(packet.ProtoIPIP, func(fd int) error { return setFilter(fd, dropAll()) })
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := sameNamespace(p.fd, f); err != nil {
		return 0, err
	}
	err = f.Control(func(fd int) error {
		mtu, err = askMTU(fd, &lookup{}, r)
		return err
	})
	return mtu, err
}

// askMTU asks by a socket with the options of l, which it connects.
func askMTU(fd int, l *lookup, r Route) (int, error) {
	if err := l.set(fd, r.lookup()); err != nil {
		return 0, err
	}
	if r.Local.IsValid() {
		if err := bind(fd, r.Local); err != nil {
			return 0, err
		}
	}
	if err := connect(fd, r.Remote); err != nil {
		return 0, err
	}
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
