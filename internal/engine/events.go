package engine

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

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
