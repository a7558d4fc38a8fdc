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
	handle  *netlink.Handle
	xfrm    *netlink.Handle          // nil in a kernel without IPsec
	sockets map[int]*nl.SocketHandle // for requests that handle does not know
	events  *nl.NetlinkSocket
	proc    *os.Root // /proc/net
	remote  netip.Addr
	gateway atomic.Pointer[netip.Addr] // on the way there, when underlay was called last
}

func openHost(remote netip.Addr) (_ *host, err error) {
	h := &host{remote: remote, sockets: map[int]*nl.SocketHandle{}}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	// The names below /proc/net are those of the namespace of a thread (proc(5)).
	if h.proc, err = os.OpenRoot("/proc/thread-self/net"); err != nil {
		return nil, err
	}
	if h.handle, err = netlink.NewHandle(syscall.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	h.xfrm, err = netlink.NewHandle(syscall.NETLINK_XFRM)
	if err != nil && !errors.Is(err, syscall.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	for _, protocol := range []int{syscall.NETLINK_ROUTE, syscall.NETLINK_NETFILTER} {
		socket, err := nl.Subscribe(protocol)
		if err != nil && !errors.Is(err, syscall.EPROTONOSUPPORT) {
			return nil, fmt.Errorf("open netlink: %w", err)
		}
		if err == nil {
			h.sockets[protocol] = &nl.SocketHandle{Socket: socket}
		}
	}
	if h.events, err = nl.Subscribe(syscall.NETLINK_ROUTE, syscall.RTNLGRP_LINK, syscall.RTNLGRP_IPV4_IFADDR,
		syscall.RTNLGRP_IPV4_ROUTE, syscall.RTNLGRP_IPV4_RULE, syscall.RTNLGRP_NEIGH); err != nil {
		return nil, fmt.Errorf("subscribe to netlink: %w", err)
	}
	return h, nil
}

// request returns a request of a type that handle does not know.
func (h *host) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = h.sockets
	return req
}

// event is what wait has seen change.
type event struct {
	links bool // a link or an IPv4 address
	path  bool // a route to the remote host, or the neighbour on that way
}

// wait waits until something changed. The error means that stop was called.
func (h *host) wait() (e event, err error) {
	messages, _, err := h.events.Receive()
	if errors.Is(err, syscall.ENOBUFS) {
		return event{true, true}, nil // more changed than the socket holds (netlink(7))
	}
	for i := range messages {
		switch m := &messages[i]; m.Header.Type {
		case syscall.RTM_NEWLINK, syscall.RTM_DELLINK, syscall.RTM_NEWADDR, syscall.RTM_DELADDR:
			e.links = true
		case syscall.RTM_NEWROUTE, syscall.RTM_DELROUTE:
			e.path = e.path || h.routesRemote(m.Data)
		case syscall.RTM_NEWNEIGH, syscall.RTM_DELNEIGH:
			e.path = e.path || h.isGateway(m.Data)
		case syscall.RTM_NEWRULE, syscall.RTM_DELRULE:
			e.path = true
		}
	}
	return e, err
}

// routesRemote reports whether a route is one to the remote host. A router has many
// others, that come and go.
func (h *host) routesRemote(message []byte) bool {
	length := int(nl.DeserializeRtMsg(message).Dst_len)
	for _, a := range attributes(message[syscall.SizeofRtMsg:]) {
		if a.Attr.Type == syscall.RTA_DST {
			to, ok := netip.AddrFromSlice(a.Value)
			return ok && netip.PrefixFrom(to, length).Contains(h.remote)
		}
	}
	return true // a default route
}

// isGateway reports whether a neighbour is the one on the way to the remote host.
func (h *host) isGateway(message []byte) bool {
	n, err := netlink.NeighDeserialize(message)
	if err != nil {
		return true // it may be
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	gateway := h.gateway.Load()
	return gateway != nil && addr.Unmap() == *gateway
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
	for _, handle := range []*netlink.Handle{h.handle, h.xfrm} {
		if handle != nil {
			handle.Close()
		}
	}
	for _, s := range h.sockets {
		s.Close()
	}
	if h.proc != nil {
		h.proc.Close()
	}
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
	deviceMTU int        // in bytes
	kind      string     // of the device, as in ip link show type
	ethernet  bool       // its link layer
	gateway   netip.Addr // the neighbour there that they go to
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
	routes, err := h.handle.RouteGetWithOptions(cfg.Remote.AsSlice(), &netlink.RouteGetOptions{
		SrcAddr: cfg.Local.AsSlice(),
		Oif:     cfg.Device,
	})
	if err != nil || len(routes) == 0 {
		return u, false
	}
	u.device = routes[0].LinkIndex
	link, err := h.handle.LinkByIndex(u.device)
	if err != nil {
		return u, false
	}
	u.deviceMTU, u.kind, u.ethernet = link.Attrs().MTU, link.Type(), link.Attrs().EncapType == "ether"
	u.gateway = cfg.Remote
	if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		u.gateway = gw.Unmap()
	}
	h.gateway.Store(&u.gateway)
	// The route's own MTU is what an administrator set or what a router reported.
	u.mtu, u.locked = u.deviceMTU, routes[0].MTULock
	if routes[0].MTU > 0 {
		u.mtu = min(u.mtu, routes[0].MTU)
	}
	u.mtu = min(u.mtu, packet.IPv4MaxLen)
	return u, true
}

// Linux's defaults of net.ipv4.route.min_pmtu, in bytes, and mtu_expires.
const (
	minPathMTU     = 552
	pathMTUExpires = 600 * time.Second
)

// reportedMTU is a path MTU that a router told of. The kernel keeps it itself, but
// for the route that a socket without a device takes; the tunnel remembers it where
// packets leave by a configured one (O6).
type reportedMTU struct {
	mtu    int // in bytes
	locked bool
	until  time.Time
}

// report adds what a router says now to r, which may be nil, as __ip_rt_update_pmtu
// in net/ipv4/route.c does: an increase is ignored.
func (r *reportedMTU) report(mtu int, now time.Time) *reportedMTU {
	if r != nil && now.Before(r.until) && mtu > r.mtu {
		return r
	}
	return &reportedMTU{max(mtu, minPathMTU), mtu < minPathMTU, now.Add(pathMTUExpires)}
}

// limit applies r, which may be nil, to a path.
func (r *reportedMTU) limit(u *underlay, now time.Time) {
	if r != nil && now.Before(r.until) && r.mtu < u.mtu {
		u.mtu, u.locked = r.mtu, r.locked
	}
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
