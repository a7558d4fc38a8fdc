package tun

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// address is an IPv4 address of a link. Its peer is the zero Addr if it has none.
type address struct {
	local netip.Prefix
	peer  netip.Addr
}

func (a address) String() string {
	if a.peer.IsValid() {
		return a.local.String() + " peer " + a.peer.String()
	}
	return a.local.String()
}

// addresses returns all addresses of a Link.
func (l *Link) addresses() []address {
	var list []address
	if l.Address.IsValid() {
		list = append(list, address{l.Address, l.Peer})
	}
	for _, a := range l.Addresses {
		list = append(list, address{local: a})
	}
	return list
}

// addAddress gives the link an address, unless it has it.
func (h *Host) addAddress(index int, a address) error {
	err := h.do(a.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address %v: %w", a, err)
	}
	return nil
}

// removeAddress takes an address from the link, if it has it.
func (h *Host) removeAddress(index int, a address) error {
	err := h.do(a.request(unix.RTM_DELADDR, 0, index))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %v: %w", a, err)
	}
	return nil
}

// request returns a request about a, see rtnetlink(7).
func (a address) request(typ, flags, index int) *nl.NetlinkRequest {
	remote := a.local // IFA_ADDRESS is the local address where there is no peer
	if a.peer.IsValid() {
		remote = netip.PrefixFrom(a.peer, a.peer.BitLen())
	}
	req := nl.NewNetlinkRequest(typ, flags|unix.NLM_F_ACK)
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(remote.Bits())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.local.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, remote.Addr().AsSlice()))
	if broadcast, ok := broadcastOf(remote); ok && typ == unix.RTM_NEWADDR {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast.AsSlice()))
	}
	return req
}

// broadcastOf returns the last address of a subnet, except that subnets of one or two
// addresses have no broadcast address (RFC 3021).
func broadcastOf(subnet netip.Prefix) (broadcast netip.Addr, ok bool) {
	if subnet.Bits() > 30 {
		return netip.Addr{}, false
	}
	b := subnet.Addr().As4()
	for bit := subnet.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b), true
}
