package tunnel_test

import (
	"net/netip"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// What keeps a tunnel from being of use is a warning, once, at the start or when a change
// of the settings or of the path brings it about.
func TestWarnings(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	own := "the remote address is this host's own: packets to it come back to this host"
	broadcast := "the remote address is a broadcast address: the kernel refuses packets to it"
	tooLong := func(fits string) string {
		return "packets above " + fits + " bytes are fragmented, or refused with DF: give an mtu of " + fits + " or less"
	}
	for name, c := range map[string]struct {
		start  func(*tunnel.Config) // what it warns of at once
		change func(*tunnel.Config) // or after this
		types  string               // or after this
		want   string
	}{
		"none":               {},
		"equal ends":         {start: func(c *tunnel.Config) { c.Remote = c.Local }, want: own},
		"its own":            {start: func(c *tunnel.Config) { c.Local, c.Remote = netip.Addr{}, netip.MustParseAddr("192.168.6.101") }, want: own},
		"its own, later":     {change: func(c *tunnel.Config) { c.Remote = netip.MustParseAddr("192.168.6.101") }, want: own},
		"its own, at last":   {types: "ip addr add 192.168.8.101/32 dev lo", want: own},
		"broadcast":          {start: func(c *tunnel.Config) { c.Remote = netip.MustParseAddr("192.168.6.255") }, want: broadcast},
		"mtu that fits":      {start: func(c *tunnel.Config) { c.MTU = 1480 }},
		"mtu":                {start: func(c *tunnel.Config) { c.MTU = 1481 }, want: tooLong("1480")},
		"mtu, later":         {change: func(c *tunnel.Config) { c.MTU = 9000 }, want: tooLong("1480")},
		"mtu, shorter route": {start: func(c *tunnel.Config) { c.MTU = 1480 }, types: "ip route change 192.168.8.0/24 via 192.168.6.1 mtu 1400", want: tooLong("1380")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			log := n.a.listen()
			cfg := config(n.a, n.b)
			if !cfg.Local.IsValid() {
				cfg.Local = n.a.outer
			}
			if c.start != nil {
				c.start(&cfg)
			}
			n.a.start(t, cfg)
			if early := log.count("WARN"); (c.change != nil || c.types != "") && early > 0 {
				t.Errorf("before the change the tunnel says:\n%s", log)
			}
			if c.change != nil {
				c.change(&cfg)
				must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(cfg) }))
			}
			n.types(t, c.types)
			if c.want == "" {
				if log.count("WARN") > 0 {
					t.Errorf("the tunnel says:\n%s", log)
				}
				return
			}
			labtest.WaitFor(t, "a warning", func() bool { return log.count("WARN") > 0 })
			cfg.TTL = 7
			must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(cfg) })) // changes nothing about it
			if log.count("WARN") != 1 || log.count(c.want) != 1 {
				t.Errorf("the tunnel says\n%s\nand should say once\n%s", log, c.want)
			}
			if c.want == broadcast {
				ping(t, n.a, n.b, netlab.PingOptions{Timeout: unanswered})
				n.a.balance(t)
				n.a.drops(t, stats.Filtered)
			}
		})
	}
}
