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
}

// tunnelKeys are the keys of [tunnel.NAME], in the order of the flags.
var tunnelKeys = []key[Tunnel]{
	{"local", `a string, as in local = "192.0.2.1"`, fromText("local")},
	{"remote", `a string, as in remote = "192.0.2.2"`, fromText("remote")},
	{"resolve-interval", `a string, as in resolve-interval = "30s"`, fromText("resolve-interval")},
	{"address", `a string, as in address = "10.0.0.1"`, fromText("address")},
	{"peer", `a string, as in peer = "10.0.0.2"`, fromText("peer")},
	{"addresses", `a list of strings, as in addresses = ["10.0.0.1/24"]`, readAddresses},
	{"routes", `a list of tables, as in routes = [{to = "198.51.100.0/24"}]`, readRoutes},
	{"mtu", "a number, as in mtu = 1400", readMTU},
	{"ttl", `a number or a string, as in ttl = 64 or ttl = "inherit"`, fromText("ttl", decimal)},
	{"tos", `a string, as in tos = "0x10" or tos = "inherit"`, fromText("tos", hexadecimal)},
	{"nopmtudisc", "a boolean, as in nopmtudisc = true", readNoPMTUDisc},
	{"dev", `a string, as in dev = "eth0"`, readDevice},
	{"fwmark", `a number or a string, as in fwmark = 7 or fwmark = "0x7"`, fromText("fwmark", decimal)},
	{"icmp", `a string, as in icmp = "linux"`, fromText("icmp")},
	{"keepalive", `a string, as in keepalive = "10s"`, fromText("keepalive")},
	{"keepalive-retries", "a number, as in keepalive-retries = 3", readKeepaliveRetries},
	{"queues", "a number, as in queues = 1", number(func(t *Tunnel) *int { return &t.Config.Queues })},
	{"offload", `a string, as in offload = "auto"`, fromText("offload")},
	{"tx", `a string, as in tx = "auto"`, fromText("tx")},
	{"fast-path", `a string, as in fast-path = "auto"`, fromText("fast-path")},
	{"clamp-mss", `a number or a string, as in clamp-mss = 1360 or clamp-mss = "auto"`, fromText("clamp-mss", decimal)},
}

// routeKeys are the keys of an element of routes.
var routeKeys = []key[Route]{
	{"to", `a string, as in to = "198.51.100.0/24"`, readTo},
	{"metric", "a number, as in metric = 100", limited(0, func(r *Route) *int { return &r.Metric })},
	{"table", "a number, as in table = 100", limited(1, func(r *Route) *int { return &r.Table })},
}

// processKeys stand at the top of a file.
var processKeys = []key[File]{
	{"metrics", `a string, as in metrics = ":9747"`, readMetrics},
	{"log-level", `a string, as in log-level = "info"`, word(LogLevels, func(f *File) *string { return &f.LogLevel })},
	{"log-format", `a string, as in log-format = "text"`, word(LogFormats, func(f *File) *string { return &f.LogFormat })},
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
