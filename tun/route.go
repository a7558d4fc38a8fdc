package tun

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// inTable returns r with the number of its table.
func (r Route) inTable() Route {
	if r.Table == 0 {
		r.Table = unix.RT_TABLE_MAIN
	}
	return r
}

// request returns a request about r, see rtnetlink(7). The route is one that ip(8)
// adds by "ip route add TO dev LINK scope link".
func (r Route) request(typ, flags, index int) *nl.NetlinkRequest {
	r = r.inTable()
	req := nl.NewNetlinkRequest(typ, flags|unix.NLM_F_ACK)
	msg := nl.NewRtMsg() // unicast, protocol boot
	msg.Family = unix.AF_INET
	msg.Scope = unix.RT_SCOPE_LINK
	msg.Table = unix.RT_TABLE_UNSPEC // RTA_TABLE has it
	msg.Dst_len = uint8(r.To.Bits())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, r.To.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table))))
	if r.Metric != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Metric))))
	}
	return req
}

// addRoute adds a route through the link, unless there is one. A route of the same
// destination, metric and table that leads elsewhere is an error.
func (h *Host) addRoute(index int, r Route) error {
	err := h.do(r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index))
	if errors.Is(err, unix.EEXIST) {
		var routes []foundRoute
		if routes, err = h.routes(index); err == nil && findRoute(routes, r) == nil {
			err = fmt.Errorf("%w: a route with this destination and metric leads elsewhere", unix.EEXIST)
		}
	}
	if err != nil {
		return fmt.Errorf("route to %v: %w", r.To, err)
	}
	return nil
}

// removeRoute removes a route that addRoute has added, if it is there.
func (h *Host) removeRoute(index int, r Route) error {
	err := h.do(r.request(unix.RTM_DELROUTE, 0, index))
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %v: %w", r.To, err)
	}
	return nil
}

// foundRoute is a route that the kernel has.
type foundRoute struct {
	Route
	kernel bool       // made by the kernel for an address, which also removes it
	source netip.Addr // preferred source address; the zero Addr for none
	msg    string     // the payload of its RTM_NEWROUTE, without what describes its state
}

// findRoute returns the route of routes that has r's destination, metric and table.
func findRoute(routes []foundRoute, r Route) *foundRoute {
	for i := range routes {
		if routes[i].Route == r.inTable() {
			return &routes[i]
		}
	}
	return nil
}

// routes returns the unicast IPv4 routes of all tables that lead through the link.
func (h *Host) routes(index int) ([]foundRoute, error) {
	for try := 1; ; try++ {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET}})
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index)))) // a filter, from Linux 4.20 on
		answers, err := h.execute(req, unix.RTM_NEWROUTE)
		if errors.Is(err, nl.ErrDumpInterrupted) && try < 5 {
			continue // routes have changed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		var routes []foundRoute
		for _, msg := range answers {
			if r, ok := parseRoute(msg, index); ok {
				routes = append(routes, r)
			}
		}
		return routes, nil
	}
}

// parseRoute parses an RTM_NEWROUTE. It reports false for one that is none of routes'.
func parseRoute(b []byte, index int) (r foundRoute, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	msg := nl.DeserializeRtMsg(b) // shares b's memory
	attrs, err := nl.ParseRouteAttrAsMap(b[unix.SizeofRtMsg:])
	oif := attrs[unix.RTA_OIF].Value
	if err != nil || msg.Type != unix.RTN_UNICAST || len(oif) != 4 || int(nl.NativeEndian().Uint32(oif)) != index {
		return r, false
	}
	to := netip.IPv4Unspecified() // which the kernel leaves out
	if dst, ok := netip.AddrFromSlice(attrs[unix.RTA_DST].Value); ok {
		to = dst
	}
	r.To = netip.PrefixFrom(to, int(msg.Dst_len))
	r.Table = int(msg.Table)
	if table := attrs[unix.RTA_TABLE].Value; len(table) == 4 {
		r.Table = int(nl.NativeEndian().Uint32(table))
	}
	if metric := attrs[unix.RTA_PRIORITY].Value; len(metric) == 4 {
		r.Metric = int(nl.NativeEndian().Uint32(metric))
	}
	r.source, _ = netip.AddrFromSlice(attrs[unix.RTA_PREFSRC].Value)
	r.kernel = msg.Protocol == unix.RTPROT_KERNEL
	msg.Flags &= unix.RTNH_F_ONLINK // the others are the kernel's
	r.msg = string(b)
	return r, true
}

// restoreRoute adds a route again that the kernel has removed.
func (h *Host) restoreRoute(r *foundRoute) error {
	// APPEND, because another route of this destination and metric may be there.
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND|unix.NLM_F_ACK)
	req.AddRawData([]byte(r.msg))
	if err := h.do(req); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("restore route to %v: %w", r.To, err)
	}
	return nil
}
