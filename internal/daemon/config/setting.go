package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"goipip/internal/dsfield"
	"goipip/internal/tunnel"
)

// Setting is one setting of a tunnel as text, in the notation that the flags, the
// words of ip-tunnel(8) and the keys of a file share.
type Setting struct {
	set  func(*tunnel.Config, string) error
	text func(*tunnel.Config) string
}

// Set reads s into c. The error says what s must be, and not what it is.
func (s Setting) Set(c *tunnel.Config, text string) error { return s.set(c, text) }

// Text is the setting in c, as Set reads it; empty for what has no value.
func (s Setting) Text(c *tunnel.Config) string { return s.text(c) }

// Settings has the settings whose notation is more than a number, a name or a
// boolean, by the name of their flag and key.
var Settings = map[string]Setting{
	"local":   {setLocal, localText},
	"remote":  {setRemote, remoteText},
	"address": setting(func(c *tunnel.Config) *netip.Prefix { return &c.Address }, parsePrefix, validText[netip.Prefix]),
	"peer":    setting(func(c *tunnel.Config) *netip.Addr { return &c.Peer }, parseAddr, validText[netip.Addr]),
	"ttl":     setting(func(c *tunnel.Config) *uint8 { return &c.TTL }, parseTTL, ttlText),
	"tos":     {setTOS, tosText},
	"fwmark":  setting(func(c *tunnel.Config) *uint32 { return &c.Mark }, parseMark, markText),
	"resolve-interval": setting(func(c *tunnel.Config) *tunnel.Duration { return &c.ResolveInterval },
		duration("30s", tunnel.MinResolveInterval, tunnel.MaxResolveInterval), durationText),
	"keepalive": setting(func(c *tunnel.Config) *tunnel.Duration { return &c.Keepalive },
		duration("10s", tunnel.MinKeepalive, tunnel.MaxKeepalive), durationText),
	"icmp": choice(func(c *tunnel.Config) *bool { return &c.RelayICMP },
		[]string{"linux", "rfc2003"}, []bool{false, true}),
	"offload": choice(func(c *tunnel.Config) *bool { return &c.NoOffload },
		[]string{"auto", "off"}, []bool{false, true}),
	"tx": choice(func(c *tunnel.Config) *tunnel.TransmitPath { return &c.Transmit },
		[]string{"auto", "raw", "packet"}, []tunnel.TransmitPath{tunnel.TransmitAuto, tunnel.TransmitRaw, tunnel.TransmitPacket}),
	"fast-path": choice(func(c *tunnel.Config) *tunnel.FastPath { return &c.Fast },
		[]string{"off", "auto", "on"}, []tunnel.FastPath{tunnel.FastOff, tunnel.FastAuto, tunnel.FastOn}),
	"clamp-mss": setting(func(c *tunnel.Config) *tunnel.ClampMSS { return &c.ClampMSS }, tunnel.ParseClampMSS, tunnel.ClampMSS.String),
}

// The formats of a log: LogAuto is LogJournal where standard error goes to the journal, and
// else LogText.
const (
	LogAuto    = "auto"
	LogText    = "text"
	LogJSON    = "json"
	LogJournal = "journal"
)

// The words of log-level and log-format, the default first.
var (
	LogLevels  = []string{"info", "debug", "warn", "error"}
	LogFormats = []string{LogAuto, LogText, LogJSON, LogJournal}
)

// OneOf returns an error unless s is one of words.
func OneOf(s string, words []string) error {
	if !slices.Contains(words, s) {
		return fmt.Errorf("must be %s", strings.Join(words, " or "))
	}
	return nil
}

// ParseListen reads where to listen, ADDRESS:PORT, and returns it in full. Without an address it
// is the loopback's, 127.0.0.1; port 0 is any that is free.
func ParseListen(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	at, parseErr := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil || parseErr != nil {
		return "", errors.New("must be a port, such as :9747, for this host alone, or an address with one, such as 192.0.2.1:9747")
	}
	return at.String(), nil
}

// setting is the field that in points to, read and shown by parse and text.
func setting[T any](in func(*tunnel.Config) *T, parse func(string) (T, error), text func(T) string) Setting {
	return Setting{
		set: func(c *tunnel.Config, s string) error {
			v, err := parse(s)
			if err == nil {
				*in(c) = v
			}
			return err
		},
		text: func(c *tunnel.Config) string { return text(*in(c)) },
	}
}

// choice is a setting of a few words, each of which stands for a value.
func choice[T comparable](in func(*tunnel.Config) *T, words []string, values []T) Setting {
	parse := func(s string) (v T, err error) {
		if err := OneOf(s, words); err != nil {
			return v, err
		}
		return values[slices.Index(words, s)], nil
	}
	return setting(in, parse, func(v T) string { return words[slices.Index(values, v)] })
}

// setLocal reads an IPv4 address, a device, whose address is meant, or any, which ip-tunnel(8)
// also takes 0.0.0.0 for (O11).
func setLocal(c *tunnel.Config, s string) error {
	a, err := netip.ParseAddr(s)
	switch {
	case s == "any", a == netip.IPv4Unspecified():
		c.Local, c.LocalDevice = netip.Addr{}, ""
	case err == nil:
		c.Local, c.LocalDevice = a, ""
	case tunnel.IsDeviceName(s):
		c.Local, c.LocalDevice = netip.Addr{}, s
	default:
		return errors.New("must be an IPv4 address, such as 192.0.2.1, a device, such as eth0, or any")
	}
	return nil
}

func localText(c *tunnel.Config) string { return cmp.Or(c.LocalDevice, c.LocalText()) }

// setRemote reads an IPv4 address or a host name.
func setRemote(c *tunnel.Config, s string) error {
	a, err := netip.ParseAddr(s)
	switch {
	case err == nil:
		c.Remote, c.RemoteName = a, ""
	case tunnel.IsHostName(s):
		c.Remote, c.RemoteName = netip.Addr{}, s
	default:
		return errors.New("must be an IPv4 address, such as 192.0.2.1, or a host name")
	}
	return nil
}

func remoteText(c *tunnel.Config) string { return cmp.Or(c.RemoteName, c.RemoteText()) }

// duration reads a time from least to most, such as example.
func duration(example string, least, most tunnel.Duration) func(string) (tunnel.Duration, error) {
	return func(s string) (tunnel.Duration, error) {
		d, err := tunnel.ParseDuration(s)
		if err != nil || d < least || d > most {
			return d, fmt.Errorf("must be a time from %v to %v, such as %s", least, most, example)
		}
		return d, nil
	}
}

func durationText(d tunnel.Duration) string {
	if d == 0 {
		return "" // none
	}
	return d.String()
}

// parseAddr reads an IPv4 address. That it is not an IPv6 one, Validate checks.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, errors.New("must be an IPv4 address, such as 192.0.2.1")
	}
	return a, nil
}

// parsePrefix reads an address with or without a prefix length.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		s += "/32"
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, errors.New("must be an IPv4 address, such as 192.0.2.1 or 192.0.2.1/24")
	}
	return p, nil
}

// validText is the text of an address or prefix; empty if there is none.
func validText[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// parseTTL reads a TTL, 0 for inherit (O3).
func parseTTL(s string) (uint8, error) {
	if s == "inherit" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 0, 8)
	if err != nil {
		return 0, errors.New("must be 1 to 255, or inherit")
	}
	return uint8(n), nil
}

func ttlText(ttl uint8) string {
	if ttl == 0 {
		return "inherit"
	}
	return strconv.Itoa(int(ttl))
}

// parseMark reads a firewall mark, decimal or hexadecimal with 0x, as ip-link(8)
// takes it.
func parseMark(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, errors.New("must be 0 to 0xffffffff")
	}
	return uint32(n), nil
}

func markText(mark uint32) string {
	if mark == 0 {
		return "" // none
	}
	return fmt.Sprintf("%#x", mark)
}

// setTOS reads a TOS as ip-tunnel(8) does (O4): a name such as EF, or hexadecimal with or
// without 0x. The lowest bit means inherit, as in the kernel (ip_tunnel_xmit in
// net/ipv4/ip_tunnel.c). The XX of inherit/XX is for inner packets that are not IP, which an
// ipip tunnel does not have.
func setTOS(c *tunnel.Config, s string) error {
	value, inherit := s, false
	if s == "inherit" {
		value, inherit = "0", true
	} else if rest, ok := strings.CutPrefix(s, "inherit/"); ok {
		value, inherit = rest, true
	}
	tos, err := dsfield.Parse(value)
	if err != nil {
		return errors.New("must be hexadecimal, 00 to ff, a name such as EF (rt_dsfield), or inherit")
	}
	c.TOS, c.InheritTOS = tos&^1, inherit || tos&1 != 0
	return nil
}

func tosText(c *tunnel.Config) string {
	if c.InheritTOS {
		return "inherit"
	}
	return fmt.Sprintf("%02x", c.TOS)
}
