package iproute

import (
	"cmp"
	"errors"
	"math"
	"net/netip"
	"syscall"

	"goipip/internal/dsfield"
	"goipip/internal/tunnel"
)

// typeUsage is what ip link add type ipip help prints (iptunnel_print_help in
// ip/link_iptnl.c).
const typeUsage = `Usage: ... ipip  	[ remote ADDR ]
			[ local ADDR ]
			[ ttl TTL ]
			[ tos TOS ]
			[ [no]pmtudisc ]
			[ 6rd-prefix ADDR ]
			[ 6rd-relay_prefix ADDR ]
			[ 6rd-reset ]
			[ dev PHYS_DEV ]
			[ fwmark MARK ]
			[ external ]
			[ noencap ]
			[ encap { fou | gue | none } ]
			[ encap-sport PORT ]
			[ encap-dport PORT ]
			[ [no]encap-csum ]
			[ [no]encap-csum6 ]
			[ [no]encap-remcsum ]
			[ mode { ipip | mplsip | any } ]

Where:	ADDR := { IP_ADDRESS | any }
	TOS  := { NUMBER | inherit }
	TTL  := { 1..255 | inherit }
	MARK := { 0x0..0xffffffff }
`

// onlyType is what goipip link is for.
const onlyType = "goipip link has add, change and delete for type ipip: use ip link for all else, also for links of goipip"

// link is ip link, as far as it makes ipip tunnels (do_iplink in ip/iplink.c).
func (r *run) link(w words) error {
	if len(w) == 0 {
		return wrong("%s", onlyType)
	}
	command := w.next()
	for _, c := range []struct {
		word string
		do   func(words) error
	}{
		{"add", r.addLink},
		{"set", r.changeLink},
		{"change", r.changeLink},
		{"delete", r.deleteLink},
	} {
		if abbreviates(command, c.word) {
			return c.do(w)
		}
	}
	return wrong("%s", onlyType)
}

// linkRequest is what the words before the type say of a link.
type linkRequest struct {
	name string
	mtu  int   // 0 for none
	up   *bool // nil for neither up nor down
	rest words // after the type
}

// parseLink reads the words up to the type (iplink_parse in ip/iplink.c).
func parseLink(w words) (*linkRequest, error) {
	q := &linkRequest{}
	for len(w) > 0 {
		switch word := w.next(); {
		case word == "up" || word == "down":
			up := word == "up"
			q.up = &up
		case word == "mtu":
			value, err := w.value()
			if err != nil {
				return nil, err
			}
			if q.mtu != 0 {
				return nil, wrong("Error: duplicate \"mtu\": \"%s\" is the second value.", value)
			}
			n, ok := number(value, math.MaxInt32)
			if !ok {
				return nil, wrongArgument("Invalid \"mtu\" value\n", value)
			}
			q.mtu = int(n)
		case abbreviates(word, "type"):
			kind, err := w.value()
			if err != nil {
				return nil, err
			}
			if kind != "ipip" {
				return nil, wrong("%s", onlyType)
			}
			q.rest = w
			return q, nil
		default:
			err := q.parseName(word, &w)
			if err != nil {
				return nil, err
			}
		}
	}
	return nil, wrong("%s", onlyType)
}

// generalWords are words of ip link that goipip does not have.
var generalWords = []string{
	"index", "link", "address", "broadcast", "brd", "txqueuelen", "qlen", "txqlen", "netns", "multicast", "allmulticast", "promisc", "trailers", "arp",
	"carrier", "master", "vrf", "nomaster", "dynamic", "alias", "group", "mode", "state", "numtxqueues", "numrxqueues",
	"addrgenmode", "link-netns", "link-netnsid", "protodown", "gso_max_size", "gso_max_segs", "gro_max_size", "parentdev",
}

func (q *linkRequest) parseName(word string, w *words) (err error) {
	what := "dev"
	switch word {
	case "name", "dev":
		what = word
		if word, err = w.value(); err != nil {
			return err
		}
	default:
		for _, general := range generalWords {
			if word == general {
				return wrong("goipip link has no %s: use ip link set %[1]s after it", word)
			}
		}
	}
	if q.name != "" {
		return wrong("Error: either \"dev\" is duplicate, or \"%s\" is a garbage.", word)
	}
	// Only netlink limits the length of a dev, which may be an alternative name.
	if short := word[:min(len(word), syscall.IFNAMSIZ-1)]; !validName(short) || what == "name" && short != word {
		return wrongArgument("\""+what+"\" not a valid ifname", word)
	} else if short != word {
		return &exit{statusRefused, "Error: Attribute failed policy validation.\n"}
	}
	q.name = word
	return nil
}

func (r *run) addLink(w words) error {
	q, err := parseLink(w)
	if err != nil {
		return err
	}
	cfg := tunnel.Config{
		Name:        cmp.Or(q.name, "ipip%d"),
		MTU:         q.mtu,
		AnyProtocol: len(q.rest) > 0, // ip's default, while that of the module is ipip
		Down:        q.up == nil || !*q.up,
	}
	if err := parseType(&cfg, q.rest); err != nil {
		return err
	}
	if err := checkRemote(cfg.Remote); err != nil {
		return err
	}
	return refusedByNetlink(r.backend.Add(r.ctx, cfg))
}

func (r *run) changeLink(w words) error {
	q, err := parseLink(w)
	if err != nil {
		return err
	}
	if q.up != nil || q.mtu != 0 {
		return wrong("goipip link change has the words of type ipip: use ip link set for up, down and mtu")
	}
	if q.name == "" {
		return wrong("Not enough information: \"dev\" argument is required.")
	}
	t, err := r.find(q.name)
	if errors.Is(err, syscall.ENODEV) {
		return failed("Cannot find device \"%s\"", q.name)
	}
	if err != nil {
		return refusedByNetlink(err)
	}
	cfg := t.Config
	if err := parseType(&cfg, q.rest); err != nil {
		return err
	}
	if err := checkRemote(cfg.Remote); err != nil {
		return err
	}
	return refusedByNetlink(r.backend.Change(r.ctx, q.name, cfg))
}

func (r *run) deleteLink(w words) error {
	q := &linkRequest{}
	for len(w) > 0 {
		if abbreviates(w[0], "type") && len(w) == 2 && w[1] == "ipip" {
			break
		}
		if err := q.parseName(w.next(), &w); err != nil {
			return err
		}
	}
	if q.name == "" {
		return wrong("Not enough information: \"dev\" argument is required.")
	}
	err := r.backend.Delete(r.ctx, q.name)
	if errors.Is(err, syscall.ENODEV) {
		if linkExists(q.name) {
			return wrong("%s", onlyType)
		}
		return failed("Cannot find device \"%s\"", q.name)
	}
	return refusedByNetlink(err)
}

// parseType reads the words after type ipip (iptunnel_parse_opt in ip/link_iptnl.c).
func parseType(cfg *tunnel.Config, w words) error {
	for len(w) > 0 {
		var err error
		switch word := w.next(); {
		case word == "mode":
			err = parseLinkMode(cfg, &w)
		case word == "remote":
			cfg.Remote, err = parseLinkAddress(&w)
		case word == "local":
			cfg.Local, err = parseLinkAddress(&w)
		case abbreviates(word, "dev"):
			var name string
			if name, err = w.value(); err == nil {
				cfg.Device, err = findDevice(name)
			}
			var e *exit
			if errors.As(err, &e) && e.status == statusFailed {
				e.status = statusWrong // exit(nodev(…))
			}
		case word == "ttl" || word == "hoplimit" || word == "hlim":
			err = parseLinkTTL(cfg, &w)
		case word == "tos" || word == "tclass" || word == "tc" || abbreviates(word, "dsfield"):
			err = parseLinkTOS(cfg, &w)
		case word == "nopmtudisc":
			cfg.NoPMTUDisc = true
		case word == "pmtudisc":
			cfg.NoPMTUDisc = false
		case word == "noencap":
		case word == "encap":
			err = parseEncap(&w)
		case word == "external":
			err = unsupported("external")
		case word == "fwmark":
			err = parseMark(cfg, &w)
		default:
			err = &exit{statusFailed, typeUsage}
		}
		if err != nil {
			return err
		}
	}
	if cfg.TTL != 0 && cfg.NoPMTUDisc {
		return wrong("ttl != 0 and nopmtudisc are incompatible")
	}
	return nil
}

func parseLinkMode(cfg *tunnel.Config, w *words) error {
	mode, err := w.value()
	switch mode {
	case "ipip", "ipv4/ipv4", "ip4ip4":
		cfg.AnyProtocol = false
	case "any", "any/ipv4":
		cfg.AnyProtocol = true
	case "mplsip", "mpls/ipv4":
		return unsupported("mode " + mode)
	default:
		if err == nil {
			err = wrongArgument("Cannot guess tunnel mode.", mode)
		}
	}
	return err
}

// parseLinkAddress reads a value as get_addr does.
func parseLinkAddress(w *words) (netip.Addr, error) {
	word, err := w.value()
	if err != nil {
		return netip.Addr{}, err
	}
	a, ok := address(word)
	if !ok {
		return a, failed("Error: inet address is expected rather than \"%s\".", word)
	}
	return a, nil
}

func parseLinkTTL(cfg *tunnel.Config, w *words) error {
	word, err := w.value()
	if err != nil {
		return err
	}
	if word == "inherit" {
		cfg.TTL = 0
		return nil
	}
	ttl, ok := number(word, 255)
	if !ok {
		return wrongArgument("invalid TTL\n", word)
	}
	cfg.TTL = uint8(ttl)
	return nil
}

func parseLinkTOS(cfg *tunnel.Config, w *words) error {
	word, err := w.value()
	if err != nil {
		return err
	}
	tos := uint8(1)
	if word != "inherit" {
		if tos, err = dsfield.Parse(word); err != nil {
			return wrongArgument("bad TOS value", word)
		}
	}
	cfg.TOS, cfg.InheritTOS = tos&^1, tos&1 != 0
	return nil
}

func parseMark(cfg *tunnel.Config, w *words) error {
	word, err := w.value()
	if err != nil {
		return err
	}
	mark, ok := number(word, math.MaxUint32)
	if !ok {
		return wrongArgument("invalid fwmark\n", word)
	}
	cfg.Mark = uint32(mark)
	return nil
}

func parseEncap(w *words) error {
	word, err := w.value()
	switch {
	case err != nil || word == "none":
		return err
	case word == "fou" || word == "gue":
		return unsupported("encap " + word)
	}
	return wrongArgument("Invalid encap type.", word)
}
