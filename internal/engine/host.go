package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"goipip/encap"
	"goipip/internal/packet"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// host asks the kernel about the namespace that it was opened in.
type host struct {
	handle   *netlink.Handle
	xfrm     *netlink.Handle          // nil in a kernel without IPsec
	requests map[int]*nl.SocketHandle // for what handle has no method
	events   *nl.NetlinkSocket
	proc     *os.Root // /proc/net

	noNFTables bool // when last asked

	minPMTU, mtuExpires sysctl // of net.ipv4.route, in bytes and seconds

	remote  netip.Addr
	gateway atomic.Pointer[netip.Addr] // on the way there, when underlay was called last
}

func openHost(remote netip.Addr) (*host, error) {
	h := &host{
		remote:     remote,
		requests:   map[int]*nl.SocketHandle{},
		minPMTU:    openSysctl("min_pmtu", 552),
		mtuExpires: openSysctl("mtu_expires", 600),
	}
	if err := h.open(); err != nil {
		h.close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

func (h *host) open() (err error) {
	// The names below /proc/net are those of the namespace of a thread (proc(5)).
	if h.proc, err = os.OpenRoot("/proc/thread-self/net"); err != nil {
		return err
	}
	if h.handle, err = netlink.NewHandle(syscall.NETLINK_ROUTE); err != nil {
		return err
	}
	xfrm, err := netlink.NewHandle(syscall.NETLINK_XFRM)
	if err == nil {
		h.xfrm = xfrm
	} else if !errors.Is(err, syscall.EPROTONOSUPPORT) {
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
		h.requests[protocol] = &nl.SocketHandle{Socket: s}
	}
	h.events, err = nl.Subscribe(syscall.NETLINK_ROUTE, syscall.RTNLGRP_LINK, syscall.RTNLGRP_IPV4_IFADDR,
		syscall.RTNLGRP_IPV4_ROUTE, syscall.RTNLGRP_IPV4_RULE, syscall.RTNLGRP_NEIGH)
	return err
}

// stop ends wait.
func (h *host) stop() {
	if h.events != nil {
		h.events.Close()
	}
}

// close releases the rest. Nothing else runs any more.
func (h *host) close() {
	h.stop()
	for _, s := range h.requests {
		s.Close()
	}
	for _, handle := range []*netlink.Handle{h.handle, h.xfrm} {
		if handle != nil {
			handle.Close()
		}
	}
	if h.proc != nil {
		h.proc.Close()
	}
	h.minPMTU.close()
	h.mtuExpires.close()
}

// addresses returns the IPv4 addresses of all links.
func (h *host) addresses() ([]netip.Addr, error) {
	list, err := h.handle.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			addrs = append(addrs, ip)
		}
	}
	return addrs, nil
}

// deviceIndex returns the index of the device with a name, and 0 for no name.
func (h *host) deviceIndex(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	link, err := h.handle.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	return link.Attrs().Index, nil
}

// tunnelLink returns the MTU of the tunnel's link in bytes, and false if it is not
// here any more.
func (h *host) tunnelLink(index int) (mtu int, ok bool) {
	link, err := h.handle.LinkByIndex(index)
	if err != nil || link.Type() != "tuntap" {
		return 0, false
	}
	return link.Attrs().MTU, true
}

// setMTU sets the MTU of a link, in bytes.
func (h *host) setMTU(index, mtu int) error {
	return h.handle.LinkSetMTU(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, mtu)
}

// underlay is the way to the remote end, for outer packets.
type underlay struct {
	device    int        // index of the device that they leave by
	gateway   netip.Addr // the neighbour there that they go to
	deviceMTU int        // in bytes
	kind      string     // of the device, as in ip link show type
	ethernet  bool       // its link layer
	encap     bool       // the route encapsulates (ip route … encap)
	mtu       int        // of the whole path, as far as known, in bytes
	// locked tells of a path that claims an MTU below net.ipv4.route.min_pmtu. The
	// kernel then keeps to that minimum, and clears DF so that the routers may do
	// the rest (ip_mtu_locked in include/net/ip.h).
	locked bool
	loop   bool // it leads into the tunnel itself (T4)
	// foreign tells that the local address is not on this host. The kernel's tunnel
	// has no route then (T3), while a raw socket may send from any address.
	foreign bool
	at      time.Time // when this was seen
}

// underlay looks the way up. It reports false when there is none.
func (h *host) underlay(cfg Config) (u underlay, ok bool) {
	r, err := h.route(cfg)
	if err != nil {
		return u, false
	}
	link, err := h.handle.LinkByIndex(r.device)
	if err != nil {
		return u, false
	}
	u.device, u.gateway, u.encap = r.device, r.gateway, r.encap
	u.deviceMTU, u.kind, u.ethernet = link.Attrs().MTU, link.Type(), link.Attrs().EncapType == "ether"
	if !u.gateway.IsValid() {
		u.gateway = cfg.Remote
	}
	h.gateway.Store(&u.gateway)
	u.mtu, u.locked = u.deviceMTU, r.locked
	if r.mtu > 0 {
		u.mtu = min(u.mtu, r.mtu)
	}
	u.mtu = min(u.mtu, packet.IPv4MaxLen)
	return u, true
}

// tunnelMTU is the MTU that Linux gives a tunnel (O2; ip_tunnel_bind_dev in
// net/ipv4/ip_tunnel.c): that of the device which the route to the remote end
// leaves by, or of the configured one, or an Ethernet's, less the outer header.
func (h *host) tunnelMTU(cfg Config) int {
	const ethernet = 1500
	if u, ok := h.underlay(cfg); ok {
		return tunnelMTU(u.deviceMTU)
	}
	if cfg.Device == "" {
		return tunnelMTU(ethernet)
	}
	link, err := h.handle.LinkByName(cfg.Device)
	if err != nil {
		return tunnelMTU(ethernet)
	}
	return tunnelMTU(link.Attrs().MTU)
}

// tunnelMTU is the MTU of a tunnel over a device of an MTU, both in bytes.
func tunnelMTU(device int) int {
	return max(min(device, packet.IPv4MaxLen)-encap.HdrLen, MinMTU)
}
