package doctor

import (
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// survey is what this network namespace has, each read once, when it is asked for: a host may have
// thousands of tunnels. What cannot be read is empty.
type survey struct {
	links      func() []netlink.Link
	addresses  func() map[int][]netlink.Addr // by the index of a link
	routes     func() map[int][]netip.Prefix // destinations of unicast routes of all tables, by the index of a link
	neighbours func() map[neighbour]int      // states
}

// neighbour is an address on a link.
type neighbour struct {
	link int
	addr netip.Addr
}

func newSurvey() survey {
	return survey{
		links: sync.OnceValue(func() []netlink.Link {
			list, err := netlink.LinkList()
			if err != nil {
				return nil
			}
			return list
		}),
		addresses: sync.OnceValue(func() map[int][]netlink.Addr {
			list, err := netlink.AddrList(nil, unix.AF_INET)
			if err != nil {
				return nil
			}
			all := map[int][]netlink.Addr{}
			for _, a := range list {
				all[a.LinkIndex] = append(all[a.LinkIndex], a)
			}
			return all
		}),
		routes: sync.OnceValue(func() map[int][]netip.Prefix {
			all := map[int][]netip.Prefix{}
			err := netlink.RouteListFilteredIter(unix.AF_INET, &netlink.Route{Type: unix.RTN_UNICAST}, netlink.RT_FILTER_TYPE|netlink.RT_FILTER_TABLE,
				func(r netlink.Route) bool {
					if p, ok := destination(r); ok {
						all[r.LinkIndex] = append(all[r.LinkIndex], p)
					}
					return true
				})
			if err != nil {
				return nil
			}
			return all
		}),
		neighbours: sync.OnceValue(func() map[neighbour]int {
			list, err := netlink.NeighList(0, unix.AF_INET)
			if err != nil {
				return nil
			}
			all := map[neighbour]int{}
			for _, n := range list {
				if a, ok := netip.AddrFromSlice(n.IP.To4()); ok {
					all[neighbour{n.LinkIndex, a}] = n.State
				}
			}
			return all
		}),
	}
}

// has reports whether an address is on a link.
func (s survey) has(index int, own netip.Addr) bool {
	return slices.ContainsFunc(s.addresses()[index], func(a netlink.Addr) bool {
		p, ok := prefix(a.IPNet)
		return ok && p.Addr() == own
	})
}

// hasNetwork reports whether a link has an address with others on its network.
func (s survey) hasNetwork(index int) bool {
	for _, a := range s.addresses()[index] {
		if p, ok := prefix(a.IPNet); ok && p.Bits() < 32 && a.Scope == unix.RT_SCOPE_UNIVERSE {
			return true
		}
	}
	return false
}

// destination returns that of a route; some versions of netlink have nil for the default route.
func destination(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
	}
	return prefix(r.Dst)
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

// bestRoute returns the route of the main table to an address, unless it is by the link with an
// index.
func bestRoute(to netip.Addr, except int) (best netlink.Route, found bool) {
	bits := -1
	err := netlink.RouteListFilteredIter(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		p, ok := destination(r)
		if ok && p.Contains(to) && (except == 0 || r.LinkIndex != except) &&
			(p.Bits() > bits || p.Bits() == bits && r.Priority < best.Priority) {
			best, bits, found = r, p.Bits(), true
		}
		return true
	})
	return best, found && err == nil
}

// routeTo looks up the route to an address as for a packet without a mark.
func routeTo(to, from netip.Addr) (device int, err error) {
	o := &netlink.RouteGetOptions{}
	if from.IsValid() {
		o.SrcAddr = from.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), o)
	if err != nil {
		return 0, err
	}
	if len(routes) == 0 {
		return 0, unix.ENETUNREACH
	}
	return routes[0].LinkIndex, nil
}
