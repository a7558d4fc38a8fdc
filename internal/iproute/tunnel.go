package iproute

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"goipip/internal/dsfield"
	"goipip/internal/tunnel"
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

// parameters are what the words say of a tunnel (struct ip_tunnel_parm).
type parameters struct {
	tunnel.Config
	mode string // as its name begins; "" for none, "ipip", or one that goipip has not
	keys bool
}

// setTOS gives tos its meaning: the lowest bit inherits (ip_tunnel_xmit in
// net/ipv4/ip_tunnel.c).
func (p *parameters) setTOS(tos uint8) { p.TOS, p.InheritTOS = tos&^1, tos&1 != 0 }

// tosByte is the TOS as the kernel keeps it.
func tosByte(cfg *tunnel.Config) uint8 {
	if cfg.InheritTOS {
		return cfg.TOS | 1
	}
	return cfg.TOS
}

// modes are the words for modes (parse_args), and what they are.
var modes = map[string]string{
	"ipip": "ipip", "ip/ip": "ipip", "gre": "gre", "gre/ip": "gre", "sit": "sit", "ipv6/ip": "sit", "isatap": "isatap", "vti": "vti",
}

// protocols are the IP protocols of modes, of which a command line may have one.
var protocols = map[string]uint8{"ipip": 4, "vti": 4, "gre": 47, "sit": 41, "isatap": 41}

// parse reads the words that describe a tunnel (parse_args in ip/iptunnel.c). If changes is
// true and the first word is a name, they are changes of that tunnel.
func (r *run) parse(w words, changes bool) (*parameters, error) {
	p := &parameters{}
	device := ""
	for first := true; len(w) > 0; first = false {
		word := w.next()
		var err error
		switch {
		case word == "mode":
			err = p.parseMode(&w)
		case word == "key" || word == "ikey" || word == "okey":
			p.keys = true
			err = parseKey(word, &w)
		case slices.Contains([]string{"seq", "iseq", "oseq", "csum", "icsum", "ocsum"}, word):
			// The module ignores them (ipip_tunnel_ctl in net/ipv4/ipip.c).
		case word == "nopmtudisc":
			p.NoPMTUDisc = true
		case word == "pmtudisc":
			p.NoPMTUDisc = false
		case word == "remote":
			p.Remote, err = parseAddress(&w)
		case word == "local":
			p.Local, err = parseAddress(&w)
		case word == "dev":
			device, err = w.value()
		case word == "ttl" || word == "hoplimit" || word == "hlim":
			err = p.parseTTL(&w)
		case word == "tos" || word == "tclass" || abbreviates(word, "dsfield"):
			err = p.parseTOS(&w)
		default:
			if word == "name" {
				if word, err = w.value(); err != nil {
					return nil, err
				}
			} else if abbreviates(word, "help") {
				return nil, wrong(tunnelUsage)
			}
			err = r.parseName(p, word, changes && first)
		}
		if err != nil {
			return nil, err
		}
	}
	return p, p.complete(device)
}

// complete checks what does not depend on single words.
func (p *parameters) complete(device string) (err error) {
	if p.mode == "" {
		for _, mode := range []string{"gre", "ipip", "sit", "isatap", "vti"} {
			if strings.HasPrefix(p.Name, mode) {
				p.mode = mode
				break
			}
		}
	}
	if p.mode != "" && p.mode != "ipip" {
		return unsupported("mode " + p.mode)
	}
	if p.keys {
		return failed("Keys are not allowed with ipip and sit tunnels")
	}
	if device != "" {
		if p.Device, err = findDevice(device); err != nil {
			return err
		}
	}
	if p.Remote.IsMulticast() && !p.Local.IsValid() {
		return failed("A broadcast tunnel requires a source address")
	}
	return nil
}

func (r *run) parseName(p *parameters, name string, change bool) error {
	if p.Name != "" {
		return wrong("Error: either \"name\" is duplicate, or \"%s\" is a garbage.", name)
	}
	if !validName(name) {
		return wrongArgument("\"name\" not a valid ifname", name)
	}
	if !change {
		p.Name = name
		return nil
	}
	t, err := r.find(name)
	if err != nil {
		return refused("get tunnel \"%s\" failed: %s", name, err)
	}
	*p = parameters{Config: t.Config, mode: "ipip"}
	if p.AnyProtocol {
		p.mode = ""
	}
	return nil
}

func (p *parameters) parseMode(w *words) error {
	word, err := w.value()
	if err != nil {
		return err
	}
	mode, ok := modes[word]
	if !ok {
		return wrong("Unknown tunnel mode \"%s\"", word)
	}
	if p.mode != "" && protocols[p.mode] != protocols[mode] {
		return wrong("You managed to ask for more than one tunnel mode.")
	}
	p.mode = mode
	p.AnyProtocol = false
	return nil
}

func parseKey(word string, w *words) error {
	key, err := w.value()
	if err != nil {
		return err
	}
	if strings.Contains(key, ".") {
		_, err := parseAddress(&words{key})
		return err
	}
	if _, ok := number(key, 1<<32-1); !ok {
		return wrong("invalid value for \"%s\": \"%s\"; it should be an unsigned integer", word, key)
	}
	return nil
}

// parseAddress reads a value as get_addr32 does.
func parseAddress(w *words) (netip.Addr, error) {
	word, err := w.value()
	if err != nil {
		return netip.Addr{}, err
	}
	a, ok := address(word)
	if !ok {
		return a, failed("Error: an IP address is expected rather than \"%s\"", word)
	}
	return a, nil
}

// parseTTL leaves the TTL as it is for inherit, as ip does.
func (p *parameters) parseTTL(w *words) error {
	word, err := w.value()
	if err != nil || word == "inherit" {
		return err
	}
	ttl, ok := number(word, 255)
	if !ok {
		return wrongArgument("invalid TTL\n", word)
	}
	p.TTL = uint8(ttl)
	return nil
}

// parseTOS reads a value, inherit, or inherit/VALUE. What follows a value and a slash is
// ignored, and not shown in errors, as in ip.
func (p *parameters) parseTOS(w *words) error {
	word, err := w.value()
	if err != nil {
		return err
	}
	word, value, ok := strings.Cut(word, "/")
	var tos uint8
	if word == "inherit" {
		tos = 1
		if !ok {
			p.setTOS(tos)
			return nil
		}
	} else {
		value = word
	}
	v, err := dsfield.Parse(value)
	if err != nil {
		return wrongArgument("bad TOS value", word)
	}
	p.setTOS(tos | v)
	return nil
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

func (r *run) add(w words) error {
	p, err := r.parse(w, false)
	if err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	if err := checkRemote(p.Remote); err != nil {
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
	p, err := r.parse(w, true)
	if err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	if err := checkRemote(p.Remote); err != nil {
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
	p, err := r.parse(w, false)
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

// show prints one tunnel, or those that are like the words (do_show in ip/iptunnel.c).
func (r *run) show(w words) error {
	p, err := r.parse(w, false)
	if err != nil {
		return err
	}
	if p.defaultDevice() == "" {
		return r.list(p)
	}
	var t Tunnel
	name := p.Name
	if name == "" {
		if t, err = r.findLike(p); err != nil {
			name, err = base, syscall.ENODEV // ip would show the device tunl0
		}
	} else {
		t, err = r.find(name)
	}
	if err != nil {
		return refused("get tunnel \"%s\" failed: %s", name, err)
	}
	print := printer{Options: r.Options}
	print.JSON = false // and no counters, as in ip
	print.tunnel(&t.Config)
	print.text("\n")
	_, err = r.out.Write(print.b.Bytes())
	return err
}

// list prints all tunnels that are like p, in the parts of it that are given.
func (r *run) list(p *parameters) error {
	tunnels, err := r.backend.List(r.ctx, r.Stats)
	if err != nil {
		return err
	}
	print := printer{Options: r.Options}
	print.begin()
	for _, t := range tunnels {
		c := &t.Config
		if p.Device != "" && p.Device != c.Device || p.Name != "" && p.Name != c.Name ||
			p.Remote.IsValid() && p.Remote != c.Remote || p.Local.IsValid() && p.Local != c.Local {
			continue
		}
		print.tunnel(c)
		if r.Stats {
			print.counters(t.Counters)
		}
		print.text("\n")
	}
	print.end()
	_, err = r.out.Write(print.b.Bytes())
	return err
}

// linkExists reports whether this network namespace has a link called name.
func linkExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}
