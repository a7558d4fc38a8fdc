package iproute

import (
	"net/netip"
	"slices"
	"strings"

	"goipip/internal/dsfield"
	"goipip/internal/tunnel"
)

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
	if p.keys && p.mode != "gre" && p.mode != "vti" {
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

// supported refuses the modes that goipip has not.
func (p *parameters) supported() error {
	if p.mode != "" && p.mode != "ipip" {
		return unsupported("mode " + p.mode)
	}
	return nil
}

// parseExisting reads the words about tunnels that there are. To one that goipip has under the
// given name, ip's ioctls get whatever the mode is: a tunnel may be called gre1.
func (r *run) parseExisting(w words) (*parameters, error) {
	p, err := r.parse(w, false)
	if err != nil {
		return nil, err
	}
	refusal := p.supported()
	if refusal == nil || p.Name == "" {
		return p, refusal
	}
	if _, err := r.find(p.Name); err != nil {
		return nil, refusal
	}
	p.mode = "ipip"
	return p, nil
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
