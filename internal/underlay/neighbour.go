package underlay

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// plainKinds are the kinds of links that packets leave through as they are, whatever
// socket they come from. Others look at the socket or the route.
var plainKinds = []string{"", "veth", "vlan", "bond", "bridge", "macvlan", "dummy"}

// valid are the states of a neighbour that the kernel sends to (NUD_VALID in
// include/net/neighbour.h).
const valid = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// errNoNeighbour tells that the link-layer address of the next hop is not known
// (yet): the kernel asks for it when it is to send something there.
var errNoNeighbour = errors.New("the link-layer address of the next hop is not known")

// setHop completes p, which leaves by a link, with the next hop for a packet socket.
func (k *kernel) setHop(p *Path, link Link, encap bool) {
	switch {
	case encap:
		p.HopReason = "the route encapsulates"
		return
	case !link.Ethernet, !slices.Contains(plainKinds, link.Kind):
		p.HopReason = fmt.Sprintf("the route leads into a link that is no plain Ethernet (%s)", link)
		return
	}
	if err := k.neighbour(p); err != nil {
		p.HopReason = err.Error()
	}
}

// neighbour looks up the link-layer address of p's gateway in the kernel's table
// (RTM_GETNEIGH of one entry, Linux 5.0).
func (k *kernel) neighbour(p *Path) error {
	family := uint8(syscall.AF_INET)
	if p.Gateway.Is6() {
		family = syscall.AF_INET6
	}
	messages, err := k.request(syscall.NETLINK_ROUTE, syscall.RTM_GETNEIGH, 0, syscall.RTM_NEWNEIGH,
		&netlink.Ndmsg{Family: family, Index: uint32(p.Device)},
		nl.NewRtAttr(netlink.NDA_DST, p.Gateway.AsSlice()))
	if errors.Is(err, syscall.ENOENT) || err == nil && len(messages) == 0 {
		return errNoNeighbour
	}
	if err != nil {
		return fmt.Errorf("look up neighbour %v: %w", p.Gateway, err)
	}
	entry, err := netlink.NeighDeserialize(messages[0])
	if err != nil {
		return fmt.Errorf("look up neighbour %v: %w", p.Gateway, err)
	}
	if entry.State&valid == 0 || len(entry.HardwareAddr) != len(p.Hop.Addr) {
		return errNoNeighbour
	}
	p.Hop.Device = p.Device
	copy(p.Hop.Addr[:], entry.HardwareAddr)
	// To ask for an entry that something else keeps would make it an ordinary one
	// (neigh_update_flags in net/core/neighbour.c).
	p.hopStale = entry.State == netlink.NUD_STALE && entry.Flags&netlink.NTF_EXT_LEARNED == 0 && entry.FlagsExt == 0
	return nil
}

// probe has the kernel find out whether a stale neighbour is still there, as a packet
// of its own would (NTF_USE, neigh_event_send in net/core/neighbour.c). What it finds
// comes as an event.
func (k *kernel) probe(p Path) {
	// An entry that is gone by now is looked up anew.
	_ = k.handle.NeighSet(&netlink.Neigh{
		LinkIndex: p.Hop.Device,
		Flags:     netlink.NTF_USE,
		IP:        p.Gateway.AsSlice(),
	})
}
