package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// carrierTimeout bounds the wait for a new veth to pass packets.
const carrierTimeout = 5 * time.Second

// Veth joins two hosts by a cable: device aName on a, bName on b. It returns when both ends are up and pass packets.
func (l *Lab) Veth(a *Host, aName string, b *Host, bName string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aName},
		PeerName:      bName,
		PeerNamespace: netlink.NsFd(b.ns),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s on %s to %s on %s: %w", aName, a.Name, bName, b.Name, err)
	}
	if err := a.SetUp(aName); err != nil {
		return err
	}
	if err := b.SetUp(bName); err != nil {
		return err
	}
	if err := a.waitCarrier(aName); err != nil {
		return err
	}
	return b.waitCarrier(bName)
}

// waitCarrier waits until dev has its carrier in every respect. The kernel drops what is sent before linkwatch_do_dev
// has run, in a work queue, and it is the same function that sets the operational state.
func (h *Host) waitCarrier(dev string) error {
	deadline := time.Now().Add(carrierTimeout)
	for {
		link, err := h.link(dev)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("host %s: %s is %s, not up, after %v", h.Name, dev, link.Attrs().OperState, carrierTimeout)
		}
		time.Sleep(time.Millisecond)
	}
}

// AddAddr gives dev an address with its prefix length, such as "192.168.6.101/24". IPv6 addresses are usable at once,
// without duplicate address detection.
func (h *Host) AddAddr(dev, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("host %s: add address to %s: %w", h.Name, dev, err)
	}
	return h.addAddr(dev, addr)
}

// AddPeer gives dev the address local of a point-to-point link and a route to its far end, peer, as
// `ip addr add LOCAL peer PEER dev DEV` does.
func (h *Host) AddPeer(dev, local, peer string) error {
	var nets [2]*net.IPNet
	for i, s := range []string{local, peer} {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("host %s: add peer address to %s: %w", h.Name, dev, err)
		}
		nets[i] = netlink.NewIPNet(ip.AsSlice())
	}
	return h.addAddr(dev, &netlink.Addr{IPNet: nets[0], Peer: nets[1]})
}

func (h *Host) addAddr(dev string, addr *netlink.Addr) error {
	link, err := h.link(dev)
	if err != nil {
		return err
	}
	if addr.IP.To4() == nil {
		addr.Flags |= unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("host %s: add address %s to %s: %w", h.Name, addr.IPNet, dev, err)
	}
	return nil
}

// AddRoute adds a route to dst, a prefix such as "192.168.8.0/24" or "default" for IPv4's. It leads through via, which
// is a gateway's address or a device's name.
func (h *Host) AddRoute(dst, via string) error {
	route := &netlink.Route{Gw: net.ParseIP(via)}
	if route.Gw == nil {
		link, err := h.link(via)
		if err != nil {
			return err
		}
		route.LinkIndex, route.Scope = link.Attrs().Index, netlink.SCOPE_LINK
	}
	prefix := dst
	if dst == "default" {
		prefix = "0.0.0.0/0"
	}
	var err error
	if route.Dst, err = netlink.ParseIPNet(prefix); err != nil {
		return fmt.Errorf("host %s: add route: %w", h.Name, err)
	}
	if err := h.nl.RouteAdd(route); err != nil {
		return fmt.Errorf("host %s: add route to %s via %s: %w", h.Name, dst, via, err)
	}
	return nil
}

// SetUp sets dev up, without waiting for its carrier.
func (h *Host) SetUp(dev string) error {
	return h.change(dev, "set up", h.nl.LinkSetUp)
}

// SetDown sets dev down, which also takes its routes.
func (h *Host) SetDown(dev string) error {
	return h.change(dev, "set down", h.nl.LinkSetDown)
}

// SetMTU sets the MTU of dev, in bytes from the IP header on.
func (h *Host) SetMTU(dev string, mtu int) error {
	return h.change(dev, fmt.Sprintf("set mtu %d of", mtu), func(link netlink.Link) error { return h.nl.LinkSetMTU(link, mtu) })
}

// DeleteLink deletes dev, and where it is an end of a veth the other end too.
func (h *Host) DeleteLink(dev string) error {
	return h.change(dev, "delete", h.nl.LinkDel)
}

// change finds dev and calls fn for it; what says in an error what fn does.
func (h *Host) change(dev, what string, fn func(netlink.Link) error) error {
	link, err := h.link(dev)
	if err != nil {
		return err
	}
	if err := fn(link); err != nil {
		return fmt.Errorf("host %s: %s %s: %w", h.Name, what, dev, err)
	}
	return nil
}

func (h *Host) link(dev string) (netlink.Link, error) {
	link, err := h.nl.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("host %s: find device %s: %w", h.Name, dev, err)
	}
	return link, nil
}
