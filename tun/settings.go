package tun

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// setting is one property of a link, as part of a request.
type setting struct {
	what        string     // for errors
	attr        *nl.RtAttr // or nil
	flags, mask uint32     // the new values of those IFF_* flags that are in mask
	optional    bool       // not an error where the kernel does not know it
}

func mtuSetting(mtu int) setting {
	return setting{what: "mtu", attr: nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))}
}

// remoteSetting makes the tunnel's remote address the link's broadcast address, which
// ip(8) shows as "peer" for a point-to-point link, as it does for the kernel's ipip
// device (O1). It takes the local address from the hardware address, which a TUN
// device cannot be given (tun_netdev_ops has no ndo_set_mac_address).
func remoteSetting(remote netip.Addr) setting {
	return setting{what: "peer", attr: nl.NewRtAttr(unix.IFLA_BROADCAST, remote.AsSlice())}
}

func aliasSetting(alias string) setting {
	return setting{what: "alias", attr: nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias))}
}

// noIPv6Setting keeps the kernel from giving the link an IPv6 address, and so from
// sending router solicitations into an IPv4 tunnel (G6). A kernel without IPv6 sends
// none.
func noIPv6Setting() setting {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(nl.IN6_ADDR_GEN_MODE_NONE))
	return setting{what: "addrgenmode none", attr: spec, optional: true}
}

// promoteSetting sets the link's promote_secondaries (ip-sysctl.rst): an address that
// goes does not take the others of its subnet with it, but one of these follows it.
func promoteSetting() setting {
	const promoteSecondaries = 20 // IPV4_DEVCONF_PROMOTE_SECONDARIES in linux/ip.h
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil).AddRtAttr(promoteSecondaries, nl.Uint32Attr(1))
	return setting{what: "promote_secondaries", attr: spec}
}

// setLink applies settings by one request if the kernel accepts them all. Else it
// applies them one by one, and returns the errors of those that failed.
func (h *Host) setLink(index int, settings ...setting) (errs []error) {
	if len(settings) == 0 || h.requestSettings(index, settings) == nil {
		return nil
	}
	for i, s := range settings {
		err := h.requestSettings(index, settings[i:i+1])
		if s.optional && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.what, err))
		}
		if errors.Is(err, unix.ENODEV) {
			break // the link is gone
		}
	}
	return errs
}

// requestSettings sends settings of which at most one has an attribute of each type.
func (h *Host) requestSettings(index int, settings []setting) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	for _, s := range settings {
		msg.Flags |= s.flags
		msg.Change |= s.mask
		if s.attr != nil {
			req.AddData(s.attr)
		}
	}
	return h.do(req)
}
