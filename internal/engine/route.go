package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink/nl"
)

// route is the way to the remote end as the kernel's tables have it.
type route struct {
	device  int        // index of the device that packets leave by
	gateway netip.Addr // not valid where the remote end is on the device's own network
	mtu     int        // what an administrator set or a router reported, in bytes; 0 for neither
	locked  bool       // no router may lower it
	encap   bool       // the route encapsulates what takes it (ip-route(8))
}

// routeTOS is the TOS by which routes are chosen (ip rule add tos): the configured
// one. Linux takes each packet's where that is inherited.
func (c Config) routeTOS() uint8 {
	const ecn = 0x03 // INET_DSCP_MASK has the others
	if c.InheritTOS {
		return 0
	}
	return c.TOS &^ ecn
}

// route looks one up for cfg's outer packets (T3; RTM_GETROUTE in rtnetlink(7)).
// The netlink package's own request has no TOS.
func (h *host) route(cfg Config) (r route, err error) {
	msg := &nl.RtMsg{}
	msg.Family = syscall.AF_INET
	msg.Dst_len, msg.Src_len = 32, 32
	msg.Tos = cfg.routeTOS()
	req := nl.NewNetlinkRequest(syscall.RTM_GETROUTE, syscall.NLM_F_REQUEST)
	req.Sockets = h.requests
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(syscall.RTA_DST, cfg.Remote.AsSlice()))
	req.AddData(nl.NewRtAttr(syscall.RTA_SRC, cfg.Local.AsSlice()))
	if cfg.Device != "" {
		link, err := h.handle.LinkByName(cfg.Device)
		if err != nil {
			return r, err
		}
		req.AddData(nl.NewRtAttr(syscall.RTA_OIF, nl.Uint32Attr(uint32(link.Attrs().Index))))
	}
	answers, err := req.Execute(syscall.NETLINK_ROUTE, syscall.RTM_NEWROUTE)
	if err != nil {
		return r, err
	}
	if len(answers) == 0 {
		return r, errors.New("no answer")
	}
	return parseRoute(answers[0])
}

// Numbers of linux/rtnetlink.h.
const (
	rtaVia   = 18 // RTA_VIA
	rtaEncap = 22 // RTA_ENCAP
)

func parseRoute(answer []byte) (r route, err error) {
	if len(answer) < syscall.SizeofRtMsg {
		return r, fmt.Errorf("route of %d bytes", len(answer))
	}
	attrs, err := nl.ParseRouteAttr(answer[syscall.SizeofRtMsg:])
	if err != nil {
		return r, err
	}
	for _, a := range attrs {
		switch a.Attr.Type &^ nlaFlags {
		case syscall.RTA_OIF:
			r.device = int(number(a.Value))
		case syscall.RTA_GATEWAY:
			r.gateway, _ = netip.AddrFromSlice(a.Value)
		case rtaVia: // struct rtvia: an IPv6 gateway, behind its family
			r.gateway, _ = netip.AddrFromSlice(a.Value[min(2, len(a.Value)):])
		case rtaEncap:
			r.encap = true
		case syscall.RTA_METRICS:
			if err := r.parseMetrics(a.Value); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

func (r *route) parseMetrics(b []byte) error {
	metrics, err := nl.ParseRouteAttr(b)
	for _, m := range metrics {
		switch m.Attr.Type {
		case syscall.RTAX_MTU:
			r.mtu = int(number(m.Value))
		case syscall.RTAX_LOCK:
			r.locked = number(m.Value)&(1<<syscall.RTAX_MTU) != 0
		}
	}
	return err
}

// number is the value of an attribute of 32 bits, and 0 for any other.
func number(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return nl.NativeEndian().Uint32(value)
}
