package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// plainKinds are the kinds of links that treat packets alike, whatever socket or route
// they come from.
var plainKinds = []string{"", "veth", "vlan", "bond", "bridge", "macvlan", "dummy"}

// valid are the states in which the kernel sends to a neighbour (NUD_VALID in
// include/net/neighbour.h).
const valid = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// errNoNeighbour reports that the link-layer address of the next hop is not known (yet).
// The kernel resolves it when it has a packet to send there.
var errNoNeighbour = errors.New("the link-layer address of the next hop is not known")

// setHop completes p, which leaves by a link, with the next hop for a packet socket. It
// reports whether the kernel would probe the neighbour before long.
func (k *kernel) setHop(p *Path, link Link, encap bool) (stale bool) {
	switch {
	case encap:
		p.HopReason = "the route encapsulates"
		return false
	case !link.Ethernet, !slices.Contains(plainKinds, link.Kind):
		p.HopReason = fmt.Sprintf("the route leads into a link that is no plain Ethernet (%s)", link)
		return false
	}
	entry, err := k.neighbour(p)
	if err != nil {
		p.HopReason = err.Error()
		return false
	}
	p.Hop.Device = p.Device
	copy(p.Hop.Addr[:], entry.HardwareAddr)
	// Probing an entry that something else maintains would make it an ordinary one
	// (neigh_update_flags in net/core/neighbour.c).
	return entry.State == netlink.NUD_STALE && entry.Flags&netlink.NTF_EXT_LEARNED == 0 && entry.FlagsExt == 0
}

// neighbour looks up the entry of p's gateway in the kernel's table (RTM_GETNEIGH of one
// entry, Linux 5.0). One without a link-layer address is errNoNeighbour.
func (k *kernel) neighbour(p *Path) (*netlink.Neigh, error) {
	family := uint8(syscall.AF_INET)
	if p.Gateway.Is6() {
		family = syscall.AF_INET6
	}
	messages, err := k.request(syscall.NETLINK_ROUTE, syscall.RTM_GETNEIGH, 0, syscall.RTM_NEWNEIGH,
		&netlink.Ndmsg{Family: family, Index: uint32(p.Device)},
		nl.NewRtAttr(netlink.NDA_DST, p.Gateway.AsSlice()))
	if errors.Is(err, syscall.ENOENT) || err == nil && len(messages) == 0 {
		return nil, errNoNeighbour
	}
	if err != nil {
		return nil, fmt.Errorf("look up neighbour %v: %w", p.Gateway, err)
	}
	entry, err := netlink.NeighDeserialize(messages[0])
	if err != nil {
		return nil, fmt.Errorf("look up neighbour %v: %w", p.Gateway, err)
	}
	if !resolved(entry) {
		return nil, errNoNeighbour
	}
	return entry, nil
}

// resolved reports whether the kernel can send to a neighbour on an Ethernet.
func resolved(entry *netlink.Neigh) bool {
	return entry.State&valid != 0 && len(entry.HardwareAddr) == len(Hop{}.Addr)
}

// neighbourEvent has the paths looked up again whose next hop has changed. An entry that
// changed only its state concerns none, unless it turned stale: then those that send
// have it probed. It needs mu.
func (w *Watcher) neighbourEvent(gone bool, entry *netlink.Neigh) {
	w.followings.lookups.doubt()
	addr, _ := netip.AddrFromSlice(entry.IP)
	for f := range w.followings.byNeighbour[neighbour{entry.LinkIndex, addr.Unmap()}] {
		known := f.path.HopReason == ""
		switch now := !gone && resolved(entry); {
		case known != now, known && [6]byte(entry.HardwareAddr) != f.path.Hop.Addr:
			f.doubt()
		case known && entry.State == netlink.NUD_STALE && f.follower.Sent() != f.sentAtProbe.Load():
			f.doubt()
		}
	}
}

// probe has the kernel find out whether a stale neighbour is still reachable, as a packet
// of its own would (NTF_USE, neigh_event_send in net/core/neighbour.c). The result
// comes as an event.
func (k *kernel) probe(p Path) {
	// An entry that is gone by now is resolved anew.
	_ = k.handle.NeighSet(&netlink.Neigh{
		LinkIndex: p.Hop.Device,
		Flags:     netlink.NTF_USE,
		IP:        p.Gateway.AsSlice(),
	})
}
