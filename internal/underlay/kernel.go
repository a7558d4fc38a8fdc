package underlay

import (
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Multicast groups of netlink sockets (linux/rtnetlink.h, linux/xfrm.h,
// linux/netfilter/nfnetlink.h).
const (
	groupNextHop  = 32 // RTNLGRP_NEXTHOP
	groupPolicy   = 4  // XFRMNLGRP_POLICY
	groupNFTables = 7  // NFNLGRP_NFTABLES
)

// eventBuffer is the receive buffer of an event socket, in bytes of kernel memory. It
// holds some thousand events.
const eventBuffer = 4 << 20

// kernel holds the netlink sockets of one network namespace. Its methods may be called by
// several goroutines; requests of one protocol are made one at a time.
type kernel struct {
	namespace namespace
	requests  map[int]*nl.SocketHandle // by protocol; only those that the kernel has
	handle    *netlink.Handle

	routes, nftables, ipsec *nl.NetlinkSocket // for events; nil if the kernel has no such protocol
	// qdiscs hears of qdiscs, and of tc's filters, of which a host may make thousands: they
	// must not displace events of routes.
	qdiscs *nl.NetlinkSocket

	noNFTables atomic.Bool // the kernel had no nftables at the last request

	minPMTU, mtuExpires sysctl // of net.ipv4.route, in bytes and seconds
}

// openKernel opens the sockets in the namespace of the calling thread.
func openKernel() (k *kernel, err error) {
	k = &kernel{
		requests:   map[int]*nl.SocketHandle{},
		minPMTU:    openSysctl("min_pmtu", 552),
		mtuExpires: openSysctl("mtu_expires", 600),
	}
	if err := k.open(); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *kernel) open() (err error) {
	if k.namespace, err = currentNamespace(); err != nil {
		return err
	}
	if k.handle, err = netlink.NewHandle(syscall.NETLINK_ROUTE); err != nil {
		return err
	}
	for _, protocol := range []int{syscall.NETLINK_ROUTE, syscall.NETLINK_NETFILTER, syscall.NETLINK_XFRM} {
		s, err := nl.Subscribe(protocol) // to nothing
		if errors.Is(err, syscall.EPROTONOSUPPORT) {
			continue
		}
		if err != nil {
			return err
		}
		k.requests[protocol] = &nl.SocketHandle{Socket: s}
		if err := s.SetReceiveTimeout(&nl.SocketTimeoutTv); err != nil {
			return err
		}
	}
	if k.routes, err = subscribe(syscall.NETLINK_ROUTE, syscall.RTNLGRP_LINK, syscall.RTNLGRP_IPV4_IFADDR,
		syscall.RTNLGRP_IPV4_ROUTE, syscall.RTNLGRP_IPV4_RULE, syscall.RTNLGRP_NEIGH, groupNextHop); err != nil {
		return err
	}
	if k.qdiscs, err = subscribe(syscall.NETLINK_ROUTE); err != nil { // to nothing yet
		return err
	}
	// Without these two, polls find changes later.
	k.nftables, _ = subscribe(syscall.NETLINK_NETFILTER, groupNFTables)
	k.ipsec, _ = subscribe(syscall.NETLINK_XFRM, groupPolicy)
	return nil
}

func subscribe(protocol int, groups ...uint) (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		return nil, err
	}
	if s.SetReceiveBufferSize(eventBuffer, true) != nil {
		_ = s.SetReceiveBufferSize(eventBuffer, false) // limited by net.core.rmem_max
	}
	return s, nil
}

// join subscribes an event socket to one more group, or to one that it has already.
func join(s *nl.NetlinkSocket, group int) error {
	return unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
}

// stopEvents closes the event sockets.
func (k *kernel) stopEvents() {
	for _, s := range []**nl.NetlinkSocket{&k.routes, &k.qdiscs, &k.nftables, &k.ipsec} {
		if *s != nil {
			(*s).Close()
		}
	}
}

func (k *kernel) close() {
	k.stopEvents()
	for _, s := range k.requests {
		s.Close()
	}
	if k.handle != nil {
		k.handle.Close()
	}
	k.namespace.close()
	k.minPMTU.close()
	k.mtuExpires.close()
}

// request sends a request by a netlink protocol, and returns the bodies of the answers of
// type answer.
func (k *kernel) request(protocol, typ, flags int, answer uint16, data ...nl.NetlinkRequestData) ([][]byte, error) {
	if k.requests[protocol] == nil {
		return nil, syscall.EPROTONOSUPPORT
	}
	req := nl.NewNetlinkRequest(typ, flags)
	req.Sockets = k.requests
	for _, d := range data {
		req.AddData(d)
	}
	return req.Execute(protocol, answer)
}

// dump lists objects of rtnetlink(7). It repeats a request that a change interrupted.
func (k *kernel) dump(typ int, answer uint16, header nl.NetlinkRequestData) (list [][]byte, err error) {
	for range 5 {
		list, err = k.request(syscall.NETLINK_ROUTE, typ, syscall.NLM_F_DUMP, answer, header)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// setMTU sets the MTU of a link, in bytes.
func (k *kernel) setMTU(index, mtu int) error {
	return k.handle.LinkSetMTU(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, mtu)
}

// nlaFlags are NLA_F_NESTED and NLA_F_NET_BYTEORDER of linux/netlink.h.
const nlaFlags = 0xc000

// attributes returns the attributes in b, and none if b is malformed.
func attributes(b []byte) []syscall.NetlinkRouteAttr {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	return list
}

// number returns the value of a 32-bit attribute, and 0 for any other.
func number(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return nl.NativeEndian().Uint32(value)
}
