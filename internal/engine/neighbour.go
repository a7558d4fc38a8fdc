package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"goipip/rawsock"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// valid are the states of a neighbour that the kernel sends to (NUD_VALID in
// include/net/neighbour.h).
const valid = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// errNoNeighbour tells that the link-layer address of the next hop is not known
// (yet): the kernel asks for it when it is to send something there.
var errNoNeighbour = errors.New("the link-layer address of the next hop is not known")

// neighbour returns the link-layer address of addr behind a device, from the
// kernel's table (RTM_GETNEIGH of one entry, Linux 5.0).
func (h *host) neighbour(device int, addr netip.Addr) (n next, err error) {
	req := nl.NewNetlinkRequest(syscall.RTM_GETNEIGH, 0)
	req.Sockets = h.requests
	family := uint8(syscall.AF_INET)
	if addr.Is6() {
		family = syscall.AF_INET6
	}
	req.AddData(&netlink.Ndmsg{Family: family, Index: uint32(device)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	messages, err := req.Execute(syscall.NETLINK_ROUTE, syscall.RTM_NEWNEIGH)
	if errors.Is(err, syscall.ENOENT) || err == nil && len(messages) == 0 {
		return n, errNoNeighbour
	}
	if err != nil {
		return n, fmt.Errorf("look up neighbour %v: %w", addr, err)
	}
	entry, err := netlink.NeighDeserialize(messages[0])
	if err != nil {
		return n, fmt.Errorf("look up neighbour %v: %w", addr, err)
	}
	if entry.State&valid == 0 || len(entry.HardwareAddr) != len(n.hop.Addr) {
		return n, errNoNeighbour
	}
	n.hop.Device = device
	copy(n.hop.Addr[:], entry.HardwareAddr)
	// To ask for an entry that somebody else keeps would make it an ordinary one
	// (neigh_update_flags in net/core/neighbour.c).
	n.stale = entry.State == netlink.NUD_STALE && entry.Flags&netlink.NTF_EXT_LEARNED == 0 && entry.FlagsExt == 0
	return n, nil
}

// probe has the kernel find out whether a stale neighbour is still there, as a
// packet of its own would (NTF_USE, neigh_event_send in net/core/neighbour.c). What
// it finds comes as an event.
func (h *host) probe(hop rawsock.Hop, addr netip.Addr) {
	// An entry that is gone by now is looked up anew.
	_ = h.handle.NeighSet(&netlink.Neigh{
		LinkIndex: hop.Device,
		Flags:     netlink.NTF_USE,
		IP:        addr.AsSlice(),
	})
}
