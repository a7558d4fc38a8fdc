package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"goipip/internal/packet"

	"github.com/vishvananda/netlink/nl"
)

// route is the kernel's route to a remote address.
type route struct {
	device  int        // index of the device that packets leave by
	gateway netip.Addr // not valid if the remote address is on the device's own network
	source  netip.Addr // that packets get which have none; not valid if the query has one
	typ     int        // RTN_UNICAST, …
	mtu     int        // set by an administrator or reported by a router, in bytes; 0 for neither
	locked  bool       // routers' reports do not change mtu
	encap   bool       // the route encapsulates packets (ip-route(8))
}

// Numbers of linux/rtnetlink.h.
const (
	rtaMark  = 16 // RTA_MARK
	rtaVia   = 18 // RTA_VIA
	rtaEncap = 22 // RTA_ENCAP
)

// route looks up a route (T3; RTM_GETROUTE in rtnetlink(7)), by the device with an index if
// that is not 0. Without q.Local, the route determines the source. RouteGet of package
// netlink lacks the TOS.
func (k *kernel) route(q Query, device int) (r route, err error) {
	header := &nl.RtMsg{}
	header.Family = syscall.AF_INET
	header.Dst_len = 32
	header.Tos = q.TOS
	data := []nl.NetlinkRequestData{header, nl.NewRtAttr(syscall.RTA_DST, q.Remote.AsSlice())}
	if q.Local.IsValid() {
		header.Src_len = 32
		data = append(data, nl.NewRtAttr(syscall.RTA_SRC, q.Local.AsSlice()))
	}
	if device != 0 {
		data = append(data, nl.NewRtAttr(syscall.RTA_OIF, nl.Uint32Attr(uint32(device))))
	}
	if q.Mark != 0 {
		data = append(data, nl.NewRtAttr(rtaMark, nl.Uint32Attr(q.Mark)))
	}
	answers, err := k.request(syscall.NETLINK_ROUTE, syscall.RTM_GETROUTE, syscall.NLM_F_REQUEST, syscall.RTM_NEWROUTE, data...)
	if err != nil {
		return r, err
	}
	if len(answers) == 0 {
		return r, errors.New("no answer")
	}
	return parseRoute(answers[0])
}

func parseRoute(answer []byte) (r route, err error) {
	if len(answer) < syscall.SizeofRtMsg {
		return r, fmt.Errorf("route of %d bytes", len(answer))
	}
	attrs, err := nl.ParseRouteAttr(answer[syscall.SizeofRtMsg:])
	if err != nil {
		return r, err
	}
	r.typ = int(nl.DeserializeRtMsg(answer).Type)
	for _, a := range attrs {
		switch a.Attr.Type &^ nlaFlags {
		case syscall.RTA_OIF:
			r.device = int(number(a.Value))
		case syscall.RTA_GATEWAY:
			r.gateway, _ = netip.AddrFromSlice(a.Value)
		case syscall.RTA_PREFSRC:
			r.source, _ = netip.AddrFromSlice(a.Value)
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

// ruleByProto reports whether some rule of ip-rule(8) selects by protocol (ipproto). Then
// RTM_GETROUTE, which looks up for UDP, may give an answer that is wrong for ipip, or for
// protocol 255 of the raw socket, by which Linux before 6.4 looks up.
func (k *kernel) ruleByProto() (bool, error) {
	const fraIPProto = 22 // FRA_IP_PROTO of linux/fib_rules.h
	rules, err := k.dump(syscall.RTM_GETRULE, syscall.RTM_NEWRULE, nl.NewIfInfomsg(syscall.AF_INET))
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return false, nil // a kernel without rules
	}
	for _, rule := range rules {
		if len(rule) < syscall.SizeofRtMsg {
			continue
		}
		for _, a := range attributes(rule[syscall.SizeofRtMsg:]) {
			if a.Attr.Type == fraIPProto && len(a.Value) == 1 && slices.Contains([]byte{packet.ProtoIPIP, packet.ProtoUDP, 255}, a.Value[0]) {
				return true, nil
			}
		}
	}
	return false, err
}
