//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"goipip/internal/engine"

	"github.com/spf13/pflag"
)

// options is what the flags say.
type options struct {
	tunnel    engine.Config
	icmp      string
	offload   string
	tx        string
	logLevel  string
	logFormat string
}

func (o *options) register(f *pflag.FlagSet) {
	c := &o.tunnel
	f.SortFlags = false
	f.Var((*addrValue)(&c.Local), "local", "outer address of this end, on this host")
	f.Var((*addrValue)(&c.Remote), "remote", "outer address of the other end")
	f.StringVar(&c.Name, "name", "", "name of the link (default: the first free of goipip0, goipip1, …)")
	f.Var((*prefixValue)(&c.Address), "address", "inner address of this end, A or A/length")
	f.Var((*addrValue)(&c.Peer), "peer", "inner address of the other end")
	f.IntVar(&c.MTU, "mtu", 0, "of the link, 68 to 65515 (default: from the route to the remote end)")
	f.Var((*ttlValue)(&c.TTL), "ttl", "of outer packets, 1 to 255, or inherit")
	f.Var(tosValue{c}, "tos", "of outer packets, hexadecimal 00 to ff, or inherit")
	f.BoolVar(&c.NoPMTUDisc, "nopmtudisc", false, "set DF on outer packets only where the inner packet has it")
	f.StringVar(&c.Device, "dev", "", "device that outer packets leave by")
	f.Var((*markValue)(&c.Mark), "fwmark", "of outer packets, by which their route may be chosen (ip rule add fwmark)")
	f.Var(newEnum(&o.icmp, "linux", "rfc2003"), "icmp", "when to tell senders of ICMP errors: linux, with their next packet, or rfc2003, at once")
	f.IntVar(&c.Queues, "queues", engine.DefaultQueues(), "of the link, each with two loops; by default one for every two cores, at most 4")
	f.Var(newEnum(&o.offload, "auto", "off"), "offload", "what the kernel's side of the link leaves to goipip, auto or off")
	f.Var(newEnum(&o.tx, "auto", "raw", "packet"), "tx", "how packets leave: by raw or by packet socket, or auto: the faster one where that changes nothing")
	f.Var(newEnum(&o.logLevel, "info", "debug", "warn", "error"), "log-level", "debug, info, warn or error")
	f.Var(newEnum(&o.logFormat, "text", "json"), "log-format", "text or json")
}

// config returns the checked tunnel that the options describe.
func (o *options) config() (engine.Config, error) {
	c := o.tunnel
	c.RelayICMP = o.icmp == "rfc2003"
	c.NoOffload = o.offload == "off"
	c.Road = map[string]engine.Road{"auto": engine.RoadAuto, "raw": engine.RoadRaw, "packet": engine.RoadPacket}[o.tx]
	var errs []error
	for _, e := range c.FieldErrors() {
		errs = append(errs, errors.New(e.Text(func(field string) string { return "--" + field })))
	}
	if len(errs) > 0 {
		return c, usageError{errors.Join(errs...)}
	}
	return c, nil
}

// version is the module's version, and the commit where the build knows it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v
}

// addrValue is an IPv4 address. That it is not an IPv6 one, Validate checks.
type addrValue netip.Addr

func (v *addrValue) Set(s string) error {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return errors.New("must be an IPv4 address, such as 192.0.2.1")
	}
	*v = addrValue(a)
	return nil
}

func (v *addrValue) Type() string { return "address" }
func (v *addrValue) String() string {
	if a := netip.Addr(*v); a.IsValid() {
		return a.String()
	}
	return ""
}

// prefixValue is an address with or without a prefix length.
type prefixValue netip.Prefix

func (v *prefixValue) Set(s string) error {
	if !strings.Contains(s, "/") {
		s += "/32"
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return errors.New("must be an IPv4 address, such as 192.0.2.1 or 192.0.2.1/24")
	}
	*v = prefixValue(p)
	return nil
}

func (v *prefixValue) Type() string { return "address" }
func (v *prefixValue) String() string {
	if p := netip.Prefix(*v); p.IsValid() {
		return p.String()
	}
	return ""
}

// ttlValue is a TTL, 0 for inherit (O3).
type ttlValue uint8

func (v *ttlValue) Set(s string) error {
	if s == "inherit" {
		*v = 0
		return nil
	}
	n, err := strconv.ParseUint(s, 0, 8)
	if err != nil {
		return errors.New("must be 1 to 255, or inherit")
	}
	*v = ttlValue(n)
	return nil
}

func (v *ttlValue) Type() string { return "hops" }
func (v *ttlValue) String() string {
	if *v == 0 {
		return "inherit"
	}
	return strconv.Itoa(int(*v))
}

// markValue is a firewall mark, decimal or hexadecimal with 0x, as ip-link(8) takes it.
type markValue uint32

func (v *markValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return errors.New("must be 0 to 0xffffffff")
	}
	*v = markValue(n)
	return nil
}

func (v *markValue) Type() string { return "mark" }
func (v *markValue) String() string {
	if *v == 0 {
		return "" // none
	}
	return fmt.Sprintf("%#x", uint32(*v))
}

// tosValue is a TOS in the notation of ip-tunnel(8), hexadecimal with or without
// 0x (O4). The XX of inherit/XX is for inner packets that are not IP, which an
// ipip tunnel does not have.
type tosValue struct{ c *engine.Config }

func (v tosValue) Set(s string) error {
	number, inherit := s, false
	if rest, ok := strings.CutPrefix(s, "inherit"); ok {
		number, inherit = strings.TrimPrefix(rest, "/"), true
	}
	var tos uint64
	if number != "" || !inherit {
		var err error
		tos, err = strconv.ParseUint(strings.TrimPrefix(number, "0x"), 16, 8)
		if err != nil {
			return errors.New("must be hexadecimal, 00 to ff, or inherit")
		}
	}
	v.c.TOS, v.c.InheritTOS = uint8(tos), inherit
	return nil
}

func (v tosValue) Type() string { return "tos" }
func (v tosValue) String() string {
	if v.c.InheritTOS {
		return "inherit"
	}
	return fmt.Sprintf("%02x", v.c.TOS)
}

// enumValue is one of a few words.
type enumValue struct {
	p     *string
	words []string
}

// newEnum sets *p to the first word, the default.
func newEnum(p *string, words ...string) enumValue {
	*p = words[0]
	return enumValue{p, words}
}

func (v enumValue) Set(s string) error {
	if !slices.Contains(v.words, s) {
		return fmt.Errorf("must be %s", strings.Join(v.words, " or "))
	}
	*v.p = s
	return nil
}

func (v enumValue) Type() string   { return "word" }
func (v enumValue) String() string { return *v.p }
