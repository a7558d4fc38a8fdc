package iproute

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// base is the device that the kernel's module makes when it is loaded, and to which ip sends
// what names no device. goipip has none.
const base = "tunl0"

// tunnelUsage is what ip tunnel help prints.
const tunnelUsage = `Usage: ip tunnel { add | change | del | show | prl | 6rd } [ NAME ]
        [ mode { gre | ipip | isatap | sit | vti } ]
        [ remote ADDR ] [ local ADDR ]
        [ [i|o]seq ] [ [i|o]key KEY ] [ [i|o]csum ]
        [ prl-default ADDR ] [ prl-nodefault ADDR ] [ prl-delete ADDR ]
        [ 6rd-prefix ADDR ] [ 6rd-relay_prefix ADDR ] [ 6rd-reset ]
        [ ttl TTL ] [ tos TOS ] [ [no]pmtudisc ] [ dev PHYS_DEV ]

Where: NAME := STRING
       ADDR := { IP_ADDRESS | any }
       TOS  := { STRING | 00..ff | inherit | inherit/STRING | inherit/00..ff }
       TTL  := { 1..255 | inherit }
       KEY  := { DOTTED_QUAD | NUMBER }`

// tunnel is ip tunnel (do_iptunnel in ip/iptunnel.c).
func (r *run) tunnel(w words) error {
	if i := slices.Index(w, "mode"); i >= 0 && i+1 < len(w) && slices.Contains(ipv6Modes, w[i+1]) {
		return unsupported("mode " + w[i+1])
	}
	if len(w) == 0 {
		return r.show(w)
	}
	command := w.next()
	for _, c := range []struct {
		word string
		do   func(words) error
	}{
		{"add", r.add},
		{"change", r.change},
		{"delete", r.del},
		{"show", r.show},
		{"lst", r.show},
		{"list", r.show},
		{"prl", func(words) error { return unsupported("prl") }},
		{"6rd", func(words) error { return unsupported("6rd") }},
		{"help", func(words) error { return wrong(tunnelUsage) }},
	} {
		if abbreviates(command, c.word) {
			return c.do(w)
		}
	}
	return wrong(`Command "%s" is unknown, try "ip tunnel help"`, command)
}

// ipv6Modes are those of tunnels over IPv6 (tunnel_mode_is_ipv6).
var ipv6Modes = []string{
	"ipv6/ipv6", "ip6ip6", "vti6", "ip/ipv6", "ipv4/ipv6", "ipip6", "ip4ip6", "ip6gre", "gre/ipv6", "any/ipv6", "any",
}

// defaultDevice returns the device that ip would send the request to if it has no name
// (tnl_defname).
func (p *parameters) defaultDevice() string {
	if p.mode == "ipip" {
		return base
	}
	return ""
}

// check is what ip checks before it adds or changes a tunnel.
func (p *parameters) check() error {
	if p.TTL != 0 && p.NoPMTUDisc {
		return failed("ttl != 0 and nopmtudisc are incompatible")
	}
	if p.defaultDevice() == "" {
		return failed("cannot determine tunnel mode (ipip, gre, vti or sit)")
	}
	return nil
}

const addFailed = "add tunnel \"%s\" failed: %s"

// checkRemote refuses what goipip has no tunnels for.
func checkRemote(remote netip.Addr) error {
	switch {
	case !remote.IsValid():
		return failed("goipip makes tunnels between two addresses only: give the remote one")
	case remote.IsMulticast() || remote == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return failed("goipip makes tunnels between two addresses only: remote %v is not the address of one host", remote)
	}
	return nil
}

// parseTunnel reads the words of a tunnel that is added or changed, and checks them.
func (r *run) parseTunnel(w words, changes bool) (*parameters, error) {
	p, err := r.parse(w, changes)
	if err == nil {
		err = p.supported()
	}
	if err == nil {
		err = p.check()
	}
	if err == nil {
		err = checkRemote(p.Remote)
	}
	return p, err
}

func (r *run) add(w words) error {
	p, err := r.parseTunnel(w, false)
	if err != nil {
		return err
	}
	// __ip_tunnel_create in net/ipv4/ip_tunnel.c, dev_valid_name in net/core/dev.c
	switch {
	case p.Name == "":
		p.Name = "ipip%d"
	case p.Name == "." || p.Name == ".." || strings.Contains(p.Name, ":"):
		return refused(addFailed, base, syscall.E2BIG)
	}
	p.Down = true
	return refused(addFailed, base, r.backend.Add(r.ctx, p.Config))
}

func (r *run) change(w words) error {
	p, err := r.parseTunnel(w, true)
	if err != nil {
		return err
	}
	name := p.Name
	if name == "" { // the tunnel between these addresses
		t, err := r.findLike(p)
		if err != nil {
			return refused(addFailed, base, err)
		}
		name = t.Config.Name
	}
	p.Mark = 0 // SIOCCHGTUNNEL has none (ip_tunnel_ctl in net/ipv4/ip_tunnel.c)
	if _, err := r.find(name); err != nil {
		return refused(addFailed, name, err)
	}
	return refused(addFailed, name, r.backend.Change(r.ctx, name, p.Config))
}

func (r *run) del(w words) error {
	const deleteFailed = "delete tunnel \"%s\" failed: %s"
	p, err := r.parseExisting(w)
	if err != nil {
		return err
	}
	name := p.Name
	if name == "" && p.defaultDevice() != "" {
		t, err := r.findLike(p)
		if err != nil {
			return refused(deleteFailed, base, err)
		}
		name = t.Config.Name
	}
	err = r.backend.Delete(r.ctx, name)
	if errors.Is(err, syscall.ENODEV) {
		err = missing(name)
	}
	return refused(deleteFailed, name, err)
}

// findLike returns the tunnel with the addresses and the device of p (ip_tunnel_find in
// net/ipv4/ip_tunnel.c).
func (r *run) findLike(p *parameters) (Tunnel, error) {
	tunnels, err := r.backend.List(r.ctx, false)
	if err != nil {
		return Tunnel{}, err
	}
	i := slices.IndexFunc(tunnels, func(t Tunnel) bool {
		return t.Config.Local == p.Local && t.Config.Remote == p.Remote && t.Config.Device == p.Device
	})
	if i < 0 {
		return Tunnel{}, syscall.ENOENT
	}
	return tunnels[i], nil
}
