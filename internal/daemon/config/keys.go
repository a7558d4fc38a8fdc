package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"

	"goipip/internal/tunnel"

	"github.com/pelletier/go-toml/v2/unstable"
)

// key is a key of a table: what its value must be, and how it is read into a T.
type key[T any] struct {
	name string
	want string // as "a number, as in mtu = 1400"
	read func(*scope, *node, *T)

	// For docs/config.md: what the value says, and the default.
	value, initial string
}

// tunnelKeys are the keys of [tunnel.NAME], in the order of the flags.
var tunnelKeys = []key[Tunnel]{
	{
		name: "local", want: `a string, as in local = "192.0.2.1"`, read: fromText("local"),
		value: "the outer address of this end, or a device, for its first address ([names](names.md)), or `\"any\"`: " +
			"packets leave from the address that the route picks, and are received at any that no other tunnel from " +
			"this `remote` has",
		initial: "`\"any\"`",
	},
	{
		name: "remote", want: `a string, as in remote = "192.0.2.2"`, read: fromText("remote"),
		value: "the outer address of the other end, IPv4, or a host name that has one ([names](names.md)); no two " +
			"tunnels have the same `local` and `remote`",
	},
	{
		name: "resolve-interval", want: `a string, as in resolve-interval = "30s"`, read: fromText("resolve-interval"),
		value:   "how often the name `remote` is looked up at least, `\"1s\"` to `\"24h\"`",
		initial: "by the answer's TTL",
	},
	{
		name: "address", want: `a string, as in address = "10.0.0.1"`, read: fromText("address"),
		value: "inner address of this end, `\"A\"` or `\"A/length\"`; `\"A\"` if there is a `peer`. Inner addresses are those " +
			"of hosts: not in 0/8, 127/8, 224/4 or 240/4, from where the other end would take no packets",
		initial: "none",
	},
	{
		name: "peer", want: `a string, as in peer = "10.0.0.2"`, read: fromText("peer"),
		value:   "inner address of the other end; needs `address`",
		initial: "none",
	},
	{
		name: "addresses", want: `a list of strings, as in addresses = ["10.0.0.1/24"]`, read: readAddresses,
		value:   "more inner addresses of this end, each `\"A\"` or `\"A/length\"`",
		initial: "none",
	},
	{
		name: "routes", want: `a list of tables, as in routes = [{to = "198.51.100.0/24"}]`, read: readRoutes,
		value:   "routes by the link, see below",
		initial: "none",
	},
	{
		name: "mtu", want: "a number, as in mtu = 1400", read: readMTU,
		value:   "of the link, 68 to 65515",
		initial: "from the route to `remote`",
	},
	{
		name: "ttl", want: `a number or a string, as in ttl = 64 or ttl = "inherit"`, read: fromText("ttl", decimal),
		value:   "of outer packets, 1 to 255, or `\"inherit\"`",
		initial: "`\"inherit\"`",
	},
	{
		name: "tos", want: `a string, as in tos = "0x10" or tos = "inherit"`, read: fromText("tos", hexadecimal),
		value: "of outer packets, hexadecimal: `\"10\"`, `\"0x10\"`, `\"inherit\"`; the number `0x10` too, but not a decimal " +
			"one",
		initial: "`\"00\"`",
	},
	{
		name: "nopmtudisc", want: "a boolean, as in nopmtudisc = true", read: readNoPMTUDisc,
		value:   "set DF on outer packets only where the inner packet has it; excludes a fixed `ttl`",
		initial: "`false`",
	},
	{
		name: "dev", want: `a string, as in dev = "eth0"`, read: readDevice,
		value:   "device that outer packets leave by",
		initial: "none",
	},
	{
		name: "fwmark", want: `a number or a string, as in fwmark = 7 or fwmark = "0x7"`, read: fromText("fwmark", decimal),
		value:   "mark of outer packets: `7`, `0x7`, `\"0x7\"`",
		initial: "none",
	},
	{
		name: "icmp", want: `a string, as in icmp = "linux"`, read: fromText("icmp"),
		value:   "`\"linux\"` or `\"rfc2003\"`: when senders are told of ICMP errors",
		initial: "`\"linux\"`",
	},
	{
		name: "keepalive", want: `a string, as in keepalive = "10s"`, read: fromText("keepalive"),
		value: "how long the other end may be silent until an echo request goes to it by the tunnel, and until the next " +
			"one, `\"100ms\"` to `\"1h\"` ([keepalive](names.md#keepalive)); needs `address` or `addresses`",
		initial: "none are sent",
	},
	{
		name: "keepalive-retries", want: "a number, as in keepalive-retries = 3", read: readKeepaliveRetries,
		value:   "how many echo requests are lost before the link's carrier goes off, 1 to 100",
		initial: "3",
	},
	{
		name: "queues", want: "a number, as in queues = 1", read: number(func(t *Tunnel) *int { return &t.Config.Queues }),
		value:   "of the link, 1 to 255",
		initial: "one for every two cores, at most 4",
	},
	{
		name: "offload", want: `a string, as in offload = "auto"`, read: fromText("offload"),
		value:   "`\"auto\"` or `\"off\"`",
		initial: "`\"auto\"`",
	},
	{
		name: "tx", want: `a string, as in tx = "auto"`, read: fromText("tx"),
		value:   "`\"auto\"`, `\"raw\"` or `\"packet\"`",
		initial: "`\"auto\"`",
	},
	{
		name: "fast-path", want: `a string, as in fast-path = "auto"`, read: fromText("fast-path"),
		value:   "`\"off\"`, `\"auto\"` or `\"on\"`: whether the kernel carries packets by itself",
		initial: "`\"off\"`",
	},
	{
		name: "clamp-mss", want: `a number or a string, as in clamp-mss = 1360 or clamp-mss = "auto"`, read: fromText("clamp-mss", decimal),
		value:   "`\"off\"`, `\"auto\"`, or 536 to 65475: the largest MSS of TCP connections through the tunnel, see below",
		initial: "`\"off\"`",
	},
}

// routeKeys are the keys of an element of routes.
var routeKeys = []key[Route]{
	{
		name: "to", want: `a string, as in to = "198.51.100.0/24"`, read: readTo,
		value: "the destination: `\"A/length\"`, `\"A\"`, or `\"default\"`",
	},
	{
		name: "metric", want: "a number, as in metric = 100", read: limited(0, func(r *Route) *int { return &r.Metric }),
		value:   "0 to 2147483647",
		initial: "0",
	},
	{
		name: "table", want: "a number, as in table = 100", read: limited(1, func(r *Route) *int { return &r.Table }),
		value:   "the routing table, 1 to 2147483647",
		initial: "the main table",
	},
}

// processKeys stand at the top of a file.
var processKeys = []key[File]{
	{
		name: "metrics", want: `a string, as in metrics = ":9747"`, read: readMetrics,
		value: "where to serve [metrics](metrics.md) for Prometheus: a port of this host alone, `\":9747\"`, or an address " +
			"with a port, `\"192.0.2.1:9747\"`; `--metrics` on the command line comes first",
		initial: "none are served",
	},
	{
		name: "log-level", want: `a string, as in log-level = "info"`, read: word(LogLevels, func(f *File) *string { return &f.LogLevel }),
		value:   "`\"debug\"`, `\"info\"`, `\"warn\"` or `\"error\"`",
		initial: "`\"info\"`",
	},
	{
		name: "log-format", want: `a string, as in log-format = "text"`, read: word(LogFormats, func(f *File) *string { return &f.LogFormat }),
		value:   "`\"auto\"`, `\"text\"`, `\"json\"` or `\"journal\"`, see [logs.md](logs.md)",
		initial: "`\"auto\"`",
	},
}

// Keys are the names of all keys of [tunnel.NAME].
func Keys() []string { return names(tunnelKeys) }

// ProcessKeys are the names of the keys at the top of a file.
func ProcessKeys() []string { return names(processKeys) }

func names[T any](keys []key[T]) []string {
	var all []string
	for _, k := range keys {
		all = append(all, k.name)
	}
	return all
}

// keyOf is the key name among keys; nil if there is none.
func keyOf[T any](keys []key[T], name string) *key[T] {
	i := slices.IndexFunc(keys, func(k key[T]) bool { return k.name == name })
	if i < 0 {
		return nil
	}
	return &keys[i]
}

// scope is where a key is read: failures are of this document and key.
type scope struct {
	*document
	want string
}

// wrong says that n has not the type that the key wants.
func (s *scope) wrong(n *node) {
	s.fail(n.at, n.path(), "is %s: must be %s", typeNames[n.kind], s.want)
}

// invalid says what is wrong with the value of n.
func (s *scope) invalid(n *node, err error) {
	text := n.text
	if n.kind == unstable.String {
		text = strconv.Quote(text)
	}
	s.fail(n.at, n.path(), "%s: %v", text, err)
}

var typeNames = map[unstable.Kind]string{
	unstable.Table: "a table", unstable.Array: "a list", unstable.String: "a string", unstable.Bool: "a boolean",
	unstable.Float: "a number with a fraction", unstable.Integer: "a number", unstable.LocalDate: "a date",
	unstable.LocalTime: "a time", unstable.LocalDateTime: "a date", unstable.DateTime: "a date",
}

// str returns the string n; false, after an error, if it is none.
func (s *scope) str(n *node) (string, bool) {
	if n.kind != unstable.String {
		s.wrong(n)
		return "", false
	}
	return n.text, true
}

// integer returns the number n; false, after an error, if it is none.
func (s *scope) integer(n *node) (int, bool) {
	if n.kind != unstable.Integer {
		s.wrong(n)
		return 0, false
	}
	v, err := strconv.ParseInt(n.text, 0, strconv.IntSize)
	if err != nil {
		s.invalid(n, errors.New("too large a number"))
		return 0, false
	}
	return int(v), true
}

// fromText reads the setting name from a string, and from numbers too if one of
// numbers turns them into text; that returns "" for a number that it does not take.
func fromText(name string, numbers ...func(string) string) func(*scope, *node, *Tunnel) {
	return func(s *scope, n *node, t *Tunnel) {
		text := n.text
		if n.kind == unstable.Integer && len(numbers) > 0 {
			text = numbers[0](n.text)
		} else if n.kind != unstable.String {
			s.wrong(n)
			return
		}
		if err := Settings[name].Set(&t.Config, text); err != nil {
			s.invalid(n, err)
		}
	}
}

// decimal writes a number of TOML as a flag would have it.
func decimal(number string) string {
	v, err := strconv.ParseInt(number, 0, 64)
	if err != nil {
		return ""
	}
	return strconv.FormatInt(v, 10)
}

// hexadecimal is decimal for settings whose notation is hexadecimal even without
// 0x: only a number with 0x is certain to mean the same in both.
func hexadecimal(number string) string {
	v, err := strconv.ParseInt(number, 0, 64)
	if err != nil || len(number) < 2 || number[1] != 'x' {
		return ""
	}
	return strconv.FormatInt(v, 16)
}

// number reads an integer whose range Validate checks.
func number[T any](in func(*T) *int) func(*scope, *node, *T) {
	return func(s *scope, n *node, t *T) {
		if v, ok := s.integer(n); ok {
			*in(t) = v
		}
	}
}

// readMTU reads an MTU, which is not 0: that stands for one that follows the route.
func readMTU(s *scope, n *node, t *Tunnel) {
	v, ok := s.integer(n)
	if ok && v == 0 {
		s.invalid(n, fmt.Errorf("must be %d to %d: leave it out for the route's", tunnel.MinMTU, tunnel.MaxMTU))
	}
	t.Config.MTU = v
}

// readKeepaliveRetries reads a number that is not 0, which stands for the default.
func readKeepaliveRetries(s *scope, n *node, t *Tunnel) {
	v, ok := s.integer(n)
	if ok && v == 0 {
		s.invalid(n, fmt.Errorf("must be 1 to %d", tunnel.MaxKeepaliveRetries))
	}
	t.Config.KeepaliveRetries = v
}

// limited reads an integer from least on that fits what netlink has for it, on every
// machine.
func limited[T any](least int, in func(*T) *int) func(*scope, *node, *T) {
	return func(s *scope, n *node, t *T) {
		v, ok := s.integer(n)
		if ok && (v < least || v > math.MaxInt32) {
			s.invalid(n, fmt.Errorf("must be %d to %d", least, math.MaxInt32))
		}
		*in(t) = v
	}
}

// word reads one of words.
func word[T any](words []string, in func(*T) *string) func(*scope, *node, *T) {
	return func(s *scope, n *node, t *T) {
		text, ok := s.str(n)
		if !ok {
			return
		}
		if err := OneOf(text, words); err != nil {
			s.invalid(n, err)
		}
		*in(t) = text
	}
}

func readMetrics(s *scope, n *node, f *File) {
	text, ok := s.str(n)
	if !ok {
		return
	}
	at, err := ParseListen(text)
	if err != nil {
		s.invalid(n, err)
	}
	f.Metrics = at
}

func readNoPMTUDisc(s *scope, n *node, t *Tunnel) {
	if n.kind != unstable.Bool {
		s.wrong(n)
	}
	t.Config.NoPMTUDisc = n.text == "true"
}

func readDevice(s *scope, n *node, t *Tunnel) {
	t.Config.Device, _ = s.str(n)
}

func readAddresses(s *scope, n *node, t *Tunnel) {
	if n.kind != unstable.Array {
		s.wrong(n)
		return
	}
	s = &scope{s.document, `a string, as in addresses = ["10.0.0.1/24"]`}
	for _, kid := range n.kids {
		var p netip.Prefix // stays so after an error, in its place
		if text, ok := s.str(kid); ok {
			var err error
			if p, err = parsePrefix(text); err != nil {
				s.invalid(kid, err)
			} else if slices.Contains(t.Addresses, p) {
				s.invalid(kid, errors.New("twice in the list: leave one out"))
			}
		}
		t.Addresses = append(t.Addresses, p)
	}
}

func readRoutes(s *scope, n *node, t *Tunnel) {
	if n.kind != unstable.Array {
		s.wrong(n)
		return
	}
	s = &scope{s.document, `a table, as in routes = [{to = "198.51.100.0/24"}]`}
	for _, kid := range n.kids {
		var r Route // stays incomplete after an error, in its place
		if kid.kind != unstable.Table {
			s.wrong(kid)
		} else if good := readTable(s.document, kid, routeKeys, &r); kid.known["to"] == nil && good["to"] {
			s.fail(kid.at, kid.path(), `to is missing: give the destination, as in to = "198.51.100.0/24"`)
		} else if r.To.IsValid() && slices.Contains(t.Routes, r) {
			s.fail(kid.at, kid.path(), "the same route is in the list before: leave one out")
		}
		t.Routes = append(t.Routes, r)
	}
}

// readTo reads the destination of a route as ip-route(8) has it.
func readTo(s *scope, n *node, r *Route) {
	text, ok := s.str(n)
	if !ok {
		return
	}
	if text == "default" {
		r.To = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		return
	}
	p, err := parsePrefix(text)
	if err != nil {
		s.invalid(n, errors.New("must be a prefix, such as 198.51.100.0/24, or default"))
	}
	r.To = p
}

// newTunnel is a tunnel with the values of keys that are not given.
func newTunnel(name string) Tunnel {
	return Tunnel{Config: tunnel.Config{Name: name, Queues: tunnel.DefaultQueues()}}
}
