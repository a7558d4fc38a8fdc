package tun

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// txQueueLen is how many packets the ring of each queue holds until it is read. The
// default of 500 overflows between two reads at full speed (see QueueDrops).
const txQueueLen = 4096

// Link is the configuration of a device's link, for [Device.Setup] and
// [Device.Change]. Other programs may change all of it later, ip(8) for example.
type Link struct {
	MTU     int          // 68 to 65515 bytes
	Remote  netip.Addr   // IPv4; ip(8) shows it as the link-layer peer
	Alias   string       // shown by ip(8); at most 255 bytes
	Address netip.Prefix // inner IPv4 address of this end; the zero value for none
	Peer    netip.Addr   // inner IPv4 address of the other end; the zero value for none

	Addresses []netip.Prefix // more inner IPv4 addresses of this end
	Routes    []Route        // through the link

	Down bool // Setup leaves the link down, and adds no Routes
}

// Route is a route through a device's link.
type Route struct {
	To     netip.Prefix `json:"to"`               // IPv4, masked
	Metric int          `json:"metric,omitempty"` // 0 for Linux's default
	Table  int          `json:"table,omitempty"`  // 0 for the main table
}

// Setup gives a new link its configuration, and brings it up unless it is to stay down. An address or route that
// the link has already is not an error. At the first error it stops; the error names
// the step.
func (d *Device) Setup(l Link) error {
	if err := d.setup(l); err != nil {
		return fmt.Errorf("set up %s: %w", d.name, err)
	}
	return nil
}

func (d *Device) setup(l Link) error {
	for _, err := range d.host.setLink(d.index,
		mtuSetting(l.MTU),
		setting{what: "txqueuelen", attr: nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(txQueueLen))},
		setting{what: "multicast off", mask: unix.IFF_MULTICAST}, // O1
		remoteSetting(l.Remote),
		aliasSetting(l.Alias),
		noIPv6Setting(),
	) {
		return err
	}
	// Before the link is up, when the kernel would attach the default one.
	if err := qdiscError(d.host.setNoqueue(d.index)); err != nil {
		return fmt.Errorf("qdisc: %w", err)
	}
	for _, a := range l.addresses() {
		if err := d.host.addAddress(d.index, a); err != nil {
			return err
		}
	}
	if l.Down {
		return nil
	}
	for _, err := range d.host.setLink(d.index, setting{what: "up", flags: unix.IFF_UP, mask: unix.IFF_UP}) {
		return err
	}
	for _, r := range l.Routes {
		if err := d.host.addRoute(d.index, r); err != nil {
			return err
		}
	}
	return nil
}

// setNoqueue gives the link the qdisc of the kernel's ipip device, which passes each
// packet to the device at once. The default one would queue none either, because a TUN
// never stops a queue, but allocates three rings of txqueuelen for each of the 256
// transmit queues of a multi-queue TUN: 25 MB (pfifo_fast_init in
// net/sched/sch_generic.c). With noqueue, a full ring also shows as congestion to a
// local sender (__dev_queue_xmit).
func (h *Host) setNoqueue(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: netlink.HANDLE_ROOT})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("noqueue")))
	return h.do(req)
}

// qdiscError returns err unless it means that the kernel has no choice of qdiscs:
// EOPNOTSUPP without CONFIG_NET_SCHED, ENOENT for a kind that it does not know. The
// link then works with the default one, and takes more memory.
func qdiscError(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
