package tunnel_test

import (
	"net/netip"
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
		"as it is":          {func(c *tunnel.Config) {}, ""},
		"no local":          {func(c *tunnel.Config) { c.Local = netip.Addr{} }, "local is missing"},
		"no remote":         {func(c *tunnel.Config) { c.Remote = netip.Addr{} }, "remote is missing"},
		"local IPv6":        {func(c *tunnel.Config) { c.Local = addr("2001:db8::1") }, "local 2001:db8::1: ipip runs over IPv4 only"},
		"remote mapped":     {func(c *tunnel.Config) { c.Remote = addr("::ffff:192.0.2.2") }, "ipip runs over IPv4 only"},
		"local 0.0.0.0":     {func(c *tunnel.Config) { c.Local = addr("0.0.0.0") }, "not the address of one host"},
		"remote multicast":  {func(c *tunnel.Config) { c.Remote = addr("224.0.0.5") }, "not the address of one host"},
		"remote broadcast":  {func(c *tunnel.Config) { c.Remote = addr("255.255.255.255") }, "not the address of one host"},
		"twice the same":    {func(c *tunnel.Config) { c.Remote = c.Local }, "needs two different ends"},
		"name of 15":        {func(c *tunnel.Config) { c.Name = "abcdefghijklmno" }, ""},
		"name of 16":        {func(c *tunnel.Config) { c.Name = "abcdefghijklmnop" }, "at most 15"},
		"name with /":       {func(c *tunnel.Config) { c.Name = "a/b" }, "not a name that a link can have"},
		"name ..":           {func(c *tunnel.Config) { c.Name = ".." }, "not a name that a link can have"},
		"name with %":       {func(c *tunnel.Config) { c.Name = "tun%d" }, "not a name that a link can have"},
		"dev of 16":         {func(c *tunnel.Config) { c.Device = "abcdefghijklmnop" }, `dev "abcdefghijklmnop"`},
		"address":           {func(c *tunnel.Config) { c.Address = prefix("10.0.0.1/24") }, ""},
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

// TestValidateEveryField finds every fault at once, and says where each is.
func TestValidateEveryField(t *testing.T) {
	addr := netip.MustParseAddr
	c := tunnel.Config{
		Name: "a/b", Local: addr("192.0.2.1"), Remote: addr("192.0.2.1"), Device: "..", Address: netip.MustParsePrefix("2001:db8::1/64"),
		Peer: addr("2001:db8::2"), MTU: 67, TTL: 5, NoPMTUDisc: true,
	}
	want := []string{
		"remote: --local and --remote are both 192.0.2.1: a tunnel needs two different ends",
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
