package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// txQueueLen is how many packets the ring of each queue holds until it is read. The
// default of 500 overflows between two reads at full speed (see QueueDrops).
const txQueueLen = 4096

// Link is what Setup makes of a device. A person may change all of it afterwards
// with ip(8).
type Link struct {
	MTU     int          // 68 … 65515 bytes
	Remote  netip.Addr   // shown by ip(8) as the link-layer peer
	Alias   string       // shown by ip(8); at most 255 bytes
	Address netip.Prefix // inner address of this end; the zero value for none
	Peer    netip.Addr   // inner address of the other end; the zero value for none

	Addresses []netip.Prefix // more inner addresses of this end
	Routes    []Route        // by the link
}

// Route is a route by a device's link.
type Route struct {
	To     netip.Prefix // IPv4, masked
	Metric int          // 0 for Linux's default
	Table  int          // 0 for the main table
}

func linkIndex(name string) (int, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find the new link: %w", err)
	}
	return ifi.Index, nil
}

// Setup gives the link its properties, its address if there is one, and brings
// it up. It works in the network namespace of the calling thread, which is the
// one that Open was called in.
func (d *Device) Setup(l Link) error {
	link, err := netlink.LinkByIndex(d.index)
	if err != nil {
		return fmt.Errorf("set up %s: %w", d.name, err)
	}
	type step struct {
		what string
		do   func() error
	}
	steps := []step{
		{"mtu", func() error { return netlink.LinkSetMTU(link, l.MTU) }},
		{"txqueuelen", func() error { return netlink.LinkSetTxQLen(link, txQueueLen) }},
		{"qdisc", func() error { return qdiscError(setNoqueue(link)) }},              // before up, which attaches the default
		{"multicast off", func() error { return netlink.LinkSetMulticastOff(link) }}, // O1
		{"peer", func() error { return d.setPeer(l.Remote) }},
		{"alias", func() error { return netlink.LinkSetAlias(link, l.Alias) }},
		{"addrgenmode none", func() error { return noIPv6Address(link) }}, // G6
		{"address", func() error { return addAddress(link, l.Address, l.Peer) }},
	}
	for _, a := range l.Addresses {
		steps = append(steps, step{"address " + a.String(), func() error { return addAddress(link, a, netip.Addr{}) }})
	}
	steps = append(steps, step{"up", func() error { return netlink.LinkSetUp(link) }})
	for _, r := range l.Routes {
		steps = append(steps, step{"route to " + r.To.String(), func() error { return addRoute(d.index, r) }})
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("set up %s: %s: %w", d.name, s.what, err)
		}
	}
	return nil
}

// setPeer makes the tunnel's remote the link's broadcast address, which ip(8)
// prints as "peer" for a point-to-point link, as it does for the kernel's ipip
// device (O1). The local end it would take from the hardware address, which a
// TUN device cannot be given (tun_netdev_ops has no ndo_set_mac_address).
func (d *Device) setPeer(remote netip.Addr) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(d.index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_BROADCAST, remote.AsSlice()))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// noIPv6Address keeps the kernel from giving the link an IPv6 address, and with
// it from sending router solicitations into an IPv4 tunnel.
func noIPv6Address(link netlink.Link) error {
	err := netlink.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without IPv6 sends none
	}
	return err
}

// setNoqueue gives the link the qdisc of the kernel's ipip device, which hands
// each packet to the device at once. The default one would queue none either,
// because a TUN never stops a queue, but allocates three rings of txqueuelen for
// each of the 256 transmit queues of a multi-queue TUN: 25 MB (pfifo_fast_init in
// net/sched/sch_generic.c). With noqueue, a full ring also shows as congestion to
// a local sender (__dev_queue_xmit).
func setNoqueue(link netlink.Link) error {
	return netlink.QdiscReplace(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT},
		QdiscType:  "noqueue",
	})
}

// qdiscError returns err unless it means that the kernel has no choice of qdiscs:
// EOPNOTSUPP without CONFIG_NET_SCHED, ENOENT for a kind that it does not know.
// The link then works with the default one, and takes more memory.
func qdiscError(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func addAddress(link netlink.Link, local netip.Prefix, peer netip.Addr) error {
	if !local.IsValid() {
		return nil
	}
	addr := &netlink.Addr{IPNet: ipNet(local)}
	if peer.IsValid() {
		addr.Peer = ipNet(netip.PrefixFrom(peer, peer.BitLen()))
	}
	return netlink.AddrAdd(link, addr)
}

func addRoute(link int, r Route) error {
	return netlink.RouteAdd(&netlink.Route{
		LinkIndex: link,
		Dst:       ipNet(r.To),
		Scope:     netlink.SCOPE_LINK,
		Priority:  r.Metric,
		Table:     r.Table,
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
