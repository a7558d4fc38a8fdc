// Package iproute has the words of ip(8) about ipip tunnels: "ip tunnel" and "ip link add …
// type ipip". It reads them, carries them out by a [Backend], and prints what ip prints, so
// that scripts need to replace only the word ip.
//
// Grammar, texts and statuses are those of iproute2 6.1 (ip/iptunnel.c, ip/tunnel.c,
// ip/link_iptnl.c, ip/iplink.c); the golden test in internal/netlab compares them with the
// real program. What only goipip says begins with "goipip".
package iproute

import (
	"strings"
)

// Options are the options of ip(8) that stand before the object.
type Options struct {
	Stats   bool
	Oneline bool
	JSON    bool
	Pretty  bool
	Numeric bool // no names of TOS values
	Resolve bool // names of hosts
	Color   Color
	Netns   string // the network namespace (ip-netns(8)) to work in; empty for this one
}

// Color says when output is in colour.
type Color uint8

// The values of -color.
const (
	ColorNever Color = iota
	ColorAuto
	ColorAlways
)

// Command is a command line of ip(8).
type Command struct {
	Options Options
	object  string // "tunnel" or "link"
	words   words  // after the object
	err     error  // of the options
}

// option is an option of ip(8), which may be abbreviated (main in ip/ip.c).
type option struct {
	name  string
	exact bool                                 // may not be abbreviated
	value bool                                 // a word follows
	set   func(o *Options, value string) error // nil for what changes nothing here
}

// options are in ip's order, which decides about abbreviations.
var options = []option{
	{name: "-loops", value: true},
	{name: "-family", value: true, set: setFamily},
	{name: "-4", exact: true},
	{name: "-6", exact: true, set: func(*Options, string) error { return unsupported("-6") }},
	{name: "-0", exact: true, set: otherFamily},
	{name: "-M", exact: true, set: otherFamily},
	{name: "-B", exact: true, set: otherFamily},
	{name: "-human-readable"},
	{name: "-iec"},
	{name: "-stats", set: flag(func(o *Options) *bool { return &o.Stats })},
	{name: "-statistics", set: flag(func(o *Options) *bool { return &o.Stats })},
	{name: "-details"},
	{name: "-resolve", set: flag(func(o *Options) *bool { return &o.Resolve })},
	{name: "-oneline", set: flag(func(o *Options) *bool { return &o.Oneline })},
	{name: "-timestamp"},
	{name: "-tshort"},
	{name: "-Version", set: func(*Options, string) error { return unsupported("-Version") }},
	{name: "-force"},
	{name: "-batch", value: true, set: func(*Options, string) error { return unsupported("-batch") }},
	{name: "-brief"},
	{name: "-json", set: flag(func(o *Options) *bool { return &o.JSON })},
	{name: "-pretty", set: flag(func(o *Options) *bool { return &o.Pretty })},
	{name: "-rcvbuf", value: true},
	{name: "-color", set: setColor},
	{name: "-help", set: func(*Options, string) error { return unsupported("-help") }},
	{name: "-netns", value: true, set: func(o *Options, value string) error { o.Netns = value; return nil }},
	{name: "-Numeric", set: flag(func(o *Options) *bool { return &o.Numeric })},
	{name: "-all"},
	{name: "-echo", exact: true},
}

func flag(in func(*Options) *bool) func(*Options, string) error {
	return func(o *Options, _ string) error { *in(o) = true; return nil }
}

func setFamily(_ *Options, value string) error {
	switch value {
	case "inet":
		return nil
	case "inet6", "link", "mpls", "bridge":
		return unsupported("-family " + value)
	}
	return wrongArgument("invalid protocol family", value)
}

func otherFamily(*Options, string) error { return wrong("Unsupported protocol family") }

func setColor(o *Options, value string) error {
	switch value {
	case "", "always":
		o.Color = ColorAlways
	case "auto":
		o.Color = ColorAuto
	case "never":
		o.Color = ColorNever
	}
	return nil
}

// find returns the option that ip takes a word for, and nil for none.
func find(word string) *option {
	if strings.HasPrefix(word, "--") {
		word = word[1:]
	}
	name, _, assigned := strings.Cut(word, "=")
	for i := range options {
		o := &options[i]
		switch {
		case o.name == "-color" && abbreviates(name, o.name), !assigned && !o.exact && abbreviates(word, o.name), word == o.name:
			return o
		}
	}
	return nil
}

// objects are those objects of ip that begin with the letters of "link" and "tunnel", in
// ip's order.
var objects = []string{"link", "l2tp", "tunnel", "tunl", "tuntap", "tap", "token", "tcpmetrics"}

// Split recognizes a command line of ip about tunnels or links, without the word ip: options
// and an object, both abbreviated as ip permits. It reports false for any other.
func Split(args []string) (c Command, ok bool) {
	rest := words(args)
	for len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' {
		word := rest.next()
		if word == "--" {
			break
		}
		o := find(word)
		if o == nil {
			return c, false
		}
		_, value, _ := strings.Cut(word, "=")
		if o.value {
			if len(rest) == 0 {
				return c, false
			}
			value = rest.next()
		}
		if o.set != nil && c.err == nil {
			c.err = o.set(&c.Options, value)
		}
	}
	if len(rest) == 0 {
		return c, false
	}
	object := rest.next()
	for _, name := range objects {
		if abbreviates(object, name) {
			c.words = rest
			switch name {
			case "tunnel", "tunl":
				c.object = "tunnel"
				return c, true
			case "link":
				c.object = "link"
				return c, true
			}
			return c, false
		}
	}
	return c, false
}
