package tunnel_test

import (
	"encoding/json"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"goipip/internal/tunnel"
)

func TestValidate(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for name, c := range map[string]struct {
		change func(*tunnel.Config)
		want   string // part of the error; empty for none
	}{
		"as it is":         {func(c *tunnel.Config) {}, ""},
		"O11 no local":     {func(c *tunnel.Config) { c.Local = netip.Addr{} }, ""},
		"no remote":        {func(c *tunnel.Config) { c.Remote = netip.Addr{} }, "remote is missing"},
		"local IPv6":       {func(c *tunnel.Config) { c.Local = addr("2001:db8::1") }, "local 2001:db8::1: ipip runs over IPv4 only"},
		"remote mapped":    {func(c *tunnel.Config) { c.Remote = addr("::ffff:192.0.2.2") }, "ipip runs over IPv4 only"},
		"local 0.0.0.0":    {func(c *tunnel.Config) { c.Local = addr("0.0.0.0") }, "leave it out for any"},
		"remote multicast": {func(c *tunnel.Config) { c.Remote = addr("224.0.0.5") }, "not the address of one host"},
		"remote broadcast": {func(c *tunnel.Config) { c.Remote = addr("255.255.255.255") }, "not the address of one host"},
		"twice the same":   {func(c *tunnel.Config) { c.Remote = c.Local }, ""},
		"name of 15":       {func(c *tunnel.Config) { c.Name = "abcdefghijklmno" }, ""},
		"name of 16":       {func(c *tunnel.Config) { c.Name = "abcdefghijklmnop" }, "at most 15"},
		"name with /":      {func(c *tunnel.Config) { c.Name = "a/b" }, "not a name that a link can have"},
		"name ..":          {func(c *tunnel.Config) { c.Name = ".." }, "not a name that a link can have"},
		"name with %":      {func(c *tunnel.Config) { c.Name = "tun%d" }, "not a name that a link can have"},
		"dev of 16":        {func(c *tunnel.Config) { c.Device = "abcdefghijklmnop" }, `dev "abcdefghijklmnop"`},
		"host name":        {func(c *tunnel.Config) { c.Remote, c.RemoteName = netip.Addr{}, "gw.example.net" }, ""},
		"with its address": {func(c *tunnel.Config) { c.RemoteName, c.ResolveInterval = "gw", tunnel.MinResolveInterval }, ""},
		"no host name":     {func(c *tunnel.Config) { c.RemoteName = "192.0.2.300" }, `remote "192.0.2.300": not a host name`},
		"device":           {func(c *tunnel.Config) { c.Local, c.LocalDevice = netip.Addr{}, "eth0" }, ""},
		"no device":        {func(c *tunnel.Config) { c.LocalDevice = "192.0.2" }, `local "192.0.2": not a device`},
		"interval alone":   {func(c *tunnel.Config) { c.ResolveInterval = tunnel.MinResolveInterval }, "resolve-interval needs a host name as remote"},
		"interval":         {func(c *tunnel.Config) { c.RemoteName, c.ResolveInterval = "gw", 1 }, "resolve-interval 1ns: must be 1s to 24h"},
		"keepalive":        {func(c *tunnel.Config) { c.Keepalive = tunnel.MinKeepalive }, "keepalive needs address"},
		"keepalive of 2h":  {func(c *tunnel.Config) { c.Address, c.Keepalive = prefix("10.0.0.1/24"), 2*tunnel.MaxKeepalive }, "keepalive 2h: must be 100ms to 1h"},
		"keepalive of 1h": {func(c *tunnel.Config) {
			c.Addresses, c.Keepalive = []netip.Prefix{prefix("10.0.0.1/24")}, tunnel.MaxKeepalive
		}, ""},
		"retries alone":     {func(c *tunnel.Config) { c.KeepaliveRetries = 3 }, "keepalive-retries 3 needs keepalive"},
		"retries of -1":     {func(c *tunnel.Config) { c.KeepaliveRetries = -1 }, "keepalive-retries -1: must be 1 to 100"},
		"address":           {func(c *tunnel.Config) { c.Address = prefix("10.0.0.1/24") }, ""},
		"address /1":        {func(c *tunnel.Config) { c.Address = prefix("10.0.0.1/1") }, ""},
		"address /0":        {func(c *tunnel.Config) { c.Address = prefix("10.0.0.1/0") }, "the kernel makes no route"},
		"address 0/8":       {func(c *tunnel.Config) { c.Address = prefix("0.0.0.1/32") }, "the other end drops packets"},
		"address 127/8":     {func(c *tunnel.Config) { c.Address = prefix("127.255.0.1/32") }, "the other end drops packets"},
		"address 223/8":     {func(c *tunnel.Config) { c.Address = prefix("223.0.0.1/32") }, ""},
		"address multicast": {func(c *tunnel.Config) { c.Address = prefix("224.0.0.5/32") }, "the other end drops packets"},
		"address broadcast": {func(c *tunnel.Config) { c.Address = prefix("255.255.255.255/32") }, "the other end drops packets"},
		"peer 240/4": {func(c *tunnel.Config) { c.Address, c.Peer = prefix("10.0.0.1/32"), addr("240.0.0.2") },
			"peer 240.0.0.2: the other end drops packets"},
		"addresses":      {func(c *tunnel.Config) { c.Addresses = []netip.Prefix{prefix("10.0.0.1/24"), prefix("10.1.0.1/32")} }, ""},
		"addresses /0":   {func(c *tunnel.Config) { c.Addresses = []netip.Prefix{prefix("10.0.0.1/24"), prefix("10.1.0.1/0")} }, "addresses[1] 10.1.0.1/0"},
		"addresses 0/0":  {func(c *tunnel.Config) { c.Addresses = []netip.Prefix{{}} }, "addresses[0]: not an address"},
		"addresses IPv6": {func(c *tunnel.Config) { c.Addresses = []netip.Prefix{prefix("2001:db8::1/64")} }, "carries IPv4 only"},
		"routes": {func(c *tunnel.Config) {
			c.Routes = []tunnel.Route{{To: prefix("0.0.0.0/0"), Metric: math.MaxInt32, Table: math.MaxInt32}, {To: prefix("10.0.0.0/8")}}
		}, ""},
		"route nowhere":     {func(c *tunnel.Config) { c.Routes = []tunnel.Route{{}} }, "routes[0].to: not a prefix"},
		"route IPv6":        {func(c *tunnel.Config) { c.Routes = []tunnel.Route{{To: prefix("::/0")}} }, "routes[0].to ::/0: an ipip"},
		"route bits":        {func(c *tunnel.Config) { c.Routes = []tunnel.Route{{To: prefix("10.0.0.1/8")}} }, "write 10.0.0.0/8"},
		"route metric":      {func(c *tunnel.Config) { c.Routes = []tunnel.Route{{To: prefix("10.0.0.0/8"), Metric: -1}} }, "routes[0].metric -1: must be 0"},
		"route table":       {func(c *tunnel.Config) { c.Routes = []tunnel.Route{{To: prefix("10.0.0.0/8"), Table: 1 << 31}} }, "routes[0].table 2147483648"},
		"address IPv6":      {func(c *tunnel.Config) { c.Address = prefix("2001:db8::1/64") }, "carries IPv4 only"},
		"peer":              {func(c *tunnel.Config) { c.Address, c.Peer = prefix("10.0.0.1/32"), addr("10.0.0.2") }, ""},
		"peer alone":        {func(c *tunnel.Config) { c.Peer = addr("10.0.0.2") }, "needs address"},
		"peer, address /24": {func(c *tunnel.Config) { c.Address, c.Peer = prefix("10.0.0.1/24"), addr("10.0.0.2") }, "without a prefix length"},
		"mtu 67":            {func(c *tunnel.Config) { c.MTU = 67 }, "mtu 67: must be 68 to 65515"},
		"mtu 68":            {func(c *tunnel.Config) { c.MTU = 68 }, ""},
		"mtu 65515":         {func(c *tunnel.Config) { c.MTU = 65515 }, ""},
		"mtu 65516":         {func(c *tunnel.Config) { c.MTU = 65516 }, "mtu 65516"},
		"ttl":               {func(c *tunnel.Config) { c.TTL = 5 }, ""},
		"O3 ttl, no pmtu":   {func(c *tunnel.Config) { c.TTL, c.NoPMTUDisc = 5, true }, "ttl != 0 and nopmtudisc are incompatible"},
		"no queue":          {func(c *tunnel.Config) { c.Queues = 0 }, "queues 0"},
		"clamp-mss auto":    {func(c *tunnel.Config) { c.ClampMSS = tunnel.ClampAuto }, ""},
		"clamp-mss 535":     {func(c *tunnel.Config) { c.ClampMSS = 535 }, "clamp-mss 535: must be off, auto, or 536 (every"},
		"clamp-mss 536":     {func(c *tunnel.Config) { c.ClampMSS = 536 }, ""},
		"clamp-mss 65475":   {func(c *tunnel.Config) { c.ClampMSS = 65475 }, ""},
		"clamp-mss 65476":   {func(c *tunnel.Config) { c.ClampMSS = 65476 }, "clamp-mss 65476"},
		"clamp-mss -2":      {func(c *tunnel.Config) { c.ClampMSS = -2 }, "clamp-mss -2"},
		"256 queues":        {func(c *tunnel.Config) { c.Queues = 256 }, "queues 256: must be 1 to 255"},
	} {
		cfg := tunnel.Config{Local: addr("192.0.2.1"), Remote: addr("192.0.2.2"), Queues: 1}
		c.change(&cfg)
		err := cfg.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

// In JSON each kind of clamp-mss is a string, and off is left out.
func TestClampMSSInJSON(t *testing.T) {
	for clamp, want := range map[tunnel.ClampMSS]string{
		tunnel.ClampOff: `{}`, tunnel.ClampAuto: `{"clamp-mss":"auto"}`, 1360: `{"clamp-mss":"1360"}`,
	} {
		text, err := json.Marshal(tunnel.Config{ClampMSS: clamp})
		if string(text) != want {
			t.Errorf("%v: got %s, want %s; %v", clamp, text, want, err)
		}
		var c tunnel.Config
		if err := json.Unmarshal(text, &c); err != nil || c.ClampMSS != clamp {
			t.Errorf("%s: got %v, want %v; %v", text, c.ClampMSS, clamp, err)
		}
	}
	for _, text := range []string{`""`, `"on"`, `"535"`, `"-1"`, `"65476"`, `"1360 "`, `1360`} {
		var c tunnel.Config
		if err := json.Unmarshal([]byte(`{"clamp-mss":`+text+`}`), &c); err == nil {
			t.Errorf("%s: got %v", text, c.ClampMSS)
		}
	}
}

// TestValidateEveryField finds every fault at once, and says where each is.
func TestValidateEveryField(t *testing.T) {
	addr := netip.MustParseAddr
	c := tunnel.Config{
		Name: "a/b", Local: addr("192.0.2.1"), Remote: addr("0.0.0.0"), Device: "..", Address: netip.MustParsePrefix("2001:db8::1/64"),
		Peer: addr("2001:db8::2"), MTU: 67, TTL: 5, NoPMTUDisc: true,
	}
	want := []string{
		"remote: --remote 0.0.0.0: not the address of one host",
		`name: --name "a/b": not a name that a link can have`,
		`dev: --dev "..": not a name that a link can have`,
		"address: --address 2001:db8::1/64: an ipip tunnel carries IPv4 only",
		"peer: --peer 2001:db8::2: an ipip tunnel carries IPv4 only",
		"mtu: --mtu 67: must be 68 to 65515",
		"nopmtudisc: ttl != 0 and nopmtudisc are incompatible: leave out --ttl or --nopmtudisc",
		"queues: --queues 0: must be 1 to 255",
	}
	var got []string
	for _, e := range c.FieldErrors() {
		got = append(got, e.Field+": "+e.Text(func(field string) string { return "--" + field }))
		if !slices.Contains(e.Fields(), e.Field) {
			t.Errorf("%v: its fields %q lack %s", e, e.Fields(), e.Field)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// As JSON, times are text, as everywhere else.
func TestConfigJSON(t *testing.T) {
	want := tunnel.Config{RemoteName: "gw", LocalDevice: "eth0", ResolveInterval: 90 * tunnel.MinResolveInterval, Keepalive: tunnel.MinKeepalive, KeepaliveRetries: 5}
	text, err := json.Marshal(want)
	if got := string(text); err != nil || got != `{"local-dev":"eth0","remote-name":"gw","resolve-interval":"1m30s","keepalive":"100ms","keepalive-retries":5}` {
		t.Errorf("%s, %v", got, err)
	}
	var got tunnel.Config
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v; %v", got, want, err)
	}
}
