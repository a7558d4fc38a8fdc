package rawsock

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// Target is where the packets to a peer go: a Route, which any goroutine may replace at
// any time. The zero value has none; its messages are refused with stats.NoRoute.
type Target struct{ now atomic.Pointer[destination] }

// Set replaces the Route. A Sender uses the new one from its next Flush on, and in a Flush
// that waits for room, for what it has not sent yet. Without a Remote the Target has no
// Route afterwards. Setting the Route that there is costs little.
//
// A Mark takes CAP_NET_RAW or CAP_NET_ADMIN at each Flush, before Linux 5.17 the latter;
// without it, messages are refused with stats.Filtered.
func (t *Target) Set(r Route) {
	if !r.Remote.IsValid() {
		t.now.Store(nil)
		return
	}
	if d := t.now.Load(); d != nil && d.is(r) {
		return
	}
	t.now.Store(newDestination(r))
}

// destination is a Route as sendmmsg(2) takes it: names and control messages, to which
// message headers point. It is immutable.
type destination struct {
	route Route
	hop   Hop // what route.Hop points to

	inet unix.RawSockaddrInet4
	link unix.RawSockaddrLinklayer // of the hop

	control    [maxControl / 8]uint64 // aligned as cmsg(3) asks for
	controlLen int                    // bytes of control messages, for the raw socket
	markLen    int                    // bytes of those at the end that the packet socket needs
}

// maxControl is room for the control messages of a Route: IP_PKTINFO, and four numbers.
const maxControl = 5 * 32

// ipProtocol is IP_PROTOCOL (linux/in.h).
const ipProtocol = 52

// newDestination makes one. Of the control messages, each means for raw_sendmsg
// (net/ipv4/raw.c, ip_cmsg_send in net/ipv4/ip_sockglue.c) what the socket option of that
// name would, for one message: IP_PKTINFO is for SO_BINDTOIFINDEX and bind.
func newDestination(r Route) *destination {
	d := &destination{route: r}
	d.inet = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: r.Remote.As4()}
	if r.Hop != nil {
		d.hop = *r.Hop
		d.route.Hop = &d.hop
		d.link = unix.RawSockaddrLinklayer{
			Family:  unix.AF_PACKET,
			Ifindex: int32(d.hop.Device),
			Halen:   uint8(len(d.hop.Addr)),
		}
		*(*[2]byte)(unsafe.Pointer(&d.link.Protocol)) = [2]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff} // in network order
		copy(d.link.Addr[:], d.hop.Addr[:])
	}
	can, _ := kernelControl() // NewSender reports the error
	if can.protocol {
		// Otherwise the kernel looks IPsec policies and routes up for protocol 255, which
		// a socket with IP_HDRINCL has, and packets would pass by a policy for protocol 4.
		d.attach(unix.SOL_IP, ipProtocol, packet.ProtoIPIP)
	}
	if r.Device != 0 || r.Local.IsValid() {
		info := unix.Inet4Pktinfo{Ifindex: int32(r.Device)}
		if r.Local.IsValid() {
			info.Spec_dst = r.Local.As4()
		}
		attach(d, unix.SOL_IP, unix.IP_PKTINFO, info)
	}
	if r.TOS != 0 {
		d.attach(unix.SOL_IP, unix.IP_TOS, uint32(r.TOS))
		if can.priority {
			d.attach(unix.SOL_SOCKET, unix.SO_PRIORITY, 0)
		}
	}
	if r.Mark != 0 {
		before := d.controlLen
		d.attach(unix.SOL_SOCKET, unix.SO_MARK, r.Mark)
		d.markLen = d.controlLen - before
	}
	return d
}

// is reports whether d is made of r.
func (d *destination) is(r Route) bool {
	if (r.Hop == nil) != (d.route.Hop == nil) || r.Hop != nil && *r.Hop != d.hop {
		return false
	}
	r.Hop = d.route.Hop
	return r == d.route
}

// attach appends a control message with a number.
func (d *destination) attach(level, kind int32, value uint32) { attach(d, level, kind, value) }

// attach appends a control message.
func attach[T uint32 | unix.Inet4Pktinfo](d *destination, level, kind int32, value T) {
	at := unsafe.Add(unsafe.Pointer(&d.control), d.controlLen)
	size := int(unsafe.Sizeof(value))
	hdr := (*unix.Cmsghdr)(at)
	hdr.Level, hdr.Type = level, kind
	hdr.SetLen(unix.CmsgLen(size))
	*(*T)(unsafe.Add(at, unix.CmsgLen(0))) = value
	d.controlLen += unix.CmsgSpace(size)
}

// address addresses message i of a batch to d, for a raw or packet socket. The message
// keeps d alive.
func (b *batch) address(i int, d *destination, byPacket bool) {
	hdr := &b.msgs[i].hdr
	control := unsafe.Pointer(&d.control)
	length := d.controlLen
	if byPacket {
		hdr.Name = (*byte)(unsafe.Pointer(&d.link))
		hdr.Namelen = unix.SizeofSockaddrLinklayer
		control = unsafe.Add(control, d.controlLen-d.markLen)
		length = d.markLen
	} else {
		hdr.Name = (*byte)(unsafe.Pointer(&d.inet))
		hdr.Namelen = unix.SizeofSockaddrInet4
	}
	if length == 0 {
		control = nil
	}
	hdr.Control = (*byte)(control)
	hdr.SetControllen(length)
}

// controlSupport is which control messages the kernel takes.
type controlSupport struct {
	protocol bool // IP_PROTOCOL, from Linux 6.4 on
	// priority: SO_PRIORITY, from Linux 6.14 on. Since then, IP_TOS as a control message
	// also sets the packet's priority within this host, which no tunnel does.
	priority bool
}

var kernel struct {
	sync.Mutex
	asked   bool
	support controlSupport
}

// kernelControl returns what the kernel takes, which it asks once in a process.
func kernelControl() (controlSupport, error) {
	kernel.Lock()
	defer kernel.Unlock()
	if kernel.asked {
		return kernel.support, nil
	}
	support, err := askControl()
	if err != nil {
		return support, fmt.Errorf("ask for control messages: %w", err)
	}
	kernel.asked, kernel.support = true, support
	return support, nil
}

// noDevice is an index that no device has.
const noDevice = 1<<31 - 1

// askControl has a socket send by a device that does not exist, so that nothing is sent.
// The error tells whether the kernel got as far as the route lookup. A UDP socket parses
// the same control messages (ip_cmsg_send), and needs no capability.
func askControl() (s controlSupport, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	takes := func(level, kind int32, value uint32) bool {
		d := &destination{inet: unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 9, Addr: [4]byte{127, 0, 0, 1}}}
		attach(d, unix.SOL_IP, unix.IP_PKTINFO, unix.Inet4Pktinfo{Ifindex: noDevice})
		d.attach(level, kind, value)
		b := newBatch(1, 1)
		b.address(0, d, false)
		_, errno := b.sendmmsg(fd, 0, 1)
		return errno == unix.ENODEV
	}
	return controlSupport{
		protocol: takes(unix.SOL_IP, ipProtocol, packet.ProtoIPIP),
		priority: takes(unix.SOL_SOCKET, unix.SO_PRIORITY, 0),
	}, nil
}
