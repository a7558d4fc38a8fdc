// Package capture is what goipip capture consists of: packet sockets beside a tunnel, filters
// in tcpdump's language, pcapng files, and lines as tcpdump prints them. It knows no daemon,
// and touches no tunnel: packets that a tunnel drops come from its control socket.
package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Packet is a captured packet, from an IP header on.
type Packet struct {
	Time      time.Time
	Interface string // by which it came or went
	Out       bool   // it went
	Data      []byte // perhaps only its beginning
	Length    int    // of the whole packet, in bytes
	Comment   string // empty for none
}

// Link is a tunnel's link.
type Link struct {
	Name  string
	Index int // in the network namespace of the tunnel's process; 0 if it was moved to another
}

// check returns an error if the link is not in this network namespace.
func (l Link) check() error {
	if here, err := net.InterfaceByIndex(l.Index); err != nil || here.Name != l.Name {
		return fmt.Errorf("the link %s is not in this network namespace: run goipip capture in that of the tunnel's process (nsenter --net)", l.Name)
	}
	return nil
}

// Live is a capture of packets that pass devices.
type Live struct {
	sockets []*socket
	devices []string
	link    *socket // by whose end the tunnel's is known
	lost    atomic.Uint64
}

// Inner captures what passes a tunnel's link. It makes the link promiscuous, as tcpdump does:
// a fast path then leaves its packets to the link.
func Inner(link Link, f Filter) (*Live, error) {
	if err := link.check(); err != nil {
		return nil, err
	}
	l := &Live{}
	s, err := l.open(link.Name, link.Index, unix.ETH_P_ALL, f.program)
	if err != nil {
		return nil, err
	}
	l.link, l.devices = s, []string{link.Name}
	if err := s.setPromiscuous(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Ends are the outer addresses of a tunnel.
type Ends struct {
	Local, Remote netip.Addr // the zero Addr as Local is any
}

// Outer captures the outer packets of a tunnel, and ICMP errors about them, on the devices
// that have an IPv4 address, and on the one called device, which may be empty.
func Outer(link Link, ends Ends, device string, f Filter) (*Live, error) {
	if link.Index != 0 {
		if err := link.check(); err != nil {
			return nil, err
		}
	}
	devices, err := underlay(link, device)
	if err != nil {
		return nil, err
	}
	l := &Live{}
	program := ends.filter(f.program)
	for _, d := range devices {
		if _, err := l.open(d.Name, d.Index, unix.ETH_P_ALL, program); err != nil {
			l.Close()
			return nil, err
		}
		l.devices = append(l.devices, d.Name)
	}
	if link.Index == 0 {
		return l, nil // its end does not show here
	}
	// Nothing comes by this protocol, so that this is no reason to do without a fast path.
	if l.link, err = l.open(link.Name, link.Index, unix.ETH_P_LOOPBACK, nil); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// underlay returns the devices that outer packets may pass. Other tunnels are not among them,
// unless the path leads there.
func underlay(link Link, device string) (devices []net.Interface, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if d.Index == link.Index && d.Name == link.Name || d.Flags&net.FlagUp == 0 {
			continue
		}
		if d.Name == device || d.Flags&net.FlagPointToPoint == 0 && hasIPv4(d) {
			devices = append(devices, d)
		}
	}
	if devices == nil {
		return nil, errors.New("no device that is up has an IPv4 address: there is nothing to capture on")
	}
	return devices, nil
}

func hasIPv4(d net.Interface) bool {
	addrs, _ := d.Addrs() // of a device that is gone, none
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			return true
		}
	}
	return false
}

func (l *Live) open(name string, index, protocol int, program []bpf.Instruction) (*socket, error) {
	s, err := openSocket(name, index, protocol, program)
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w: run goipip capture as root, or with CAP_NET_RAW", err)
	}
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", name, err)
	}
	l.sockets = append(l.sockets, s)
	return s, nil
}

// Interfaces returns the names of the devices.
func (l *Live) Interfaces() []string { return l.devices }

// Run sends packets, which the receiver owns, until ctx is done or the tunnel's link is gone.
func (l *Live) Run(ctx context.Context, packets chan<- Packet) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		for _, s := range l.sockets {
			s.interrupt()
		}
	})()
	errs := make([]error, len(l.sockets))
	var reading sync.WaitGroup
	for i, s := range l.sockets {
		reading.Go(func() {
			errs[i] = s.run(ctx, packets)
			if s == l.link || errs[i] != nil {
				cancel()
			}
		})
	}
	reading.Wait()
	for _, s := range l.sockets {
		l.lost.Add(s.drops())
	}
	return errors.Join(errs...)
}

// Lost returns how many packets found no room in a socket's buffer, once Run has returned.
func (l *Live) Lost() uint64 { return l.lost.Load() }

// Close closes the sockets. Run must not be running.
func (l *Live) Close() {
	for _, s := range l.sockets {
		s.close()
	}
}
