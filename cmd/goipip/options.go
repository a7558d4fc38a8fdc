package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"goipip/internal/engine"

	"github.com/spf13/pflag"
)

// options is what the flags say.
type options struct {
	tunnel    engine.Config
	offload   string
	logLevel  slog.Level
	logFormat string
}

func (o *options) register(f *pflag.FlagSet) {
	c := &o.tunnel
	f.SortFlags = false
	f.Var(textValue{&c.Local, "address"}, "local", "outer address of this end, on this host")
	f.Var(textValue{&c.Remote, "address"}, "remote", "outer address of the other end")
	f.StringVar(&c.Name, "name", "", "name of the link (default: the first free of goipip0, goipip1, …)")
	f.Var((*prefixValue)(&c.Address), "address", "inner address of this end, A or A/length")
	f.Var(textValue{&c.Peer, "address"}, "peer", "inner address of the other end")
	f.IntVar(&c.MTU, "mtu", 0, "of the link, 68 to 65515 (default: from the route to the remote end)")
	f.Var((*ttlValue)(&c.TTL), "ttl", "of outer packets, 1 to 255, or inherit")
	f.Var(tosValue{c}, "tos", "of outer packets, hexadecimal 00 to ff, or inherit")
	f.BoolVar(&c.NoPMTUDisc, "nopmtudisc", false, "set DF on outer packets only where the inner packet has it")
	f.StringVar(&c.Device, "dev", "", "device that outer packets leave by")
	f.IntVar(&c.Queues, "queues", 1, "of the link, each with its own pair of threads")
	f.Var(newEnum(&o.offload, "auto", "off"), "offload", "what the kernel's side of the link leaves to goipip, auto or off")
	f.Var(textValue{&o.logLevel, "level"}, "log-level", "debug, info, warn or error")
	f.Var(newEnum(&o.logFormat, "text", "json"), "log-format", "text or json")
}

// config returns the checked tunnel that the options describe.
func (o *options) config() (engine.Config, error) {
	c := o.tunnel
	c.NoOffload = o.offload == "off"
	if err := c.Validate(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

func (o *options) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: o.logLevel}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
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

// text is what netip.Addr and slog.Level know.
type text interface {
	UnmarshalText([]byte) error
	MarshalText() ([]byte, error)
}

// textValue is a flag of a type that reads itself. Unlike pflag's own, it says
// in the help what is expected.
type textValue struct {
	p    text
	kind string
}

func (v textValue) Set(s string) error { return v.p.UnmarshalText([]byte(s)) }
func (v textValue) Type() string       { return v.kind }
func (v textValue) String() string {
	b, _ := v.p.MarshalText()
	return string(b)
}

// prefixValue is an address with or without a prefix length.
type prefixValue netip.Prefix

func (v *prefixValue) Set(s string) error {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		*v = prefixValue(p)
		return err
	}
	a, err := netip.ParseAddr(s)
	if err == nil {
		*v = prefixValue(netip.PrefixFrom(a, a.BitLen()))
	}
	return err
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
		return fmt.Errorf("must be 1 … 255, or inherit")
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
			return fmt.Errorf("must be hexadecimal 00 … ff, inherit, or inherit/XX")
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
	for _, w := range v.words {
		if s == w {
			*v.p = s
			return nil
		}
	}
	return fmt.Errorf("must be %s", strings.Join(v.words, " or "))
}

func (v enumValue) Type() string   { return "word" }
func (v enumValue) String() string { return *v.p }
