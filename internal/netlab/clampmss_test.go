package netlab_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// Where ICMP 3/4 is filtered, a connection between hosts behind the two ends opens and then
// hangs, unless its MSS is clamped.
func TestClampMSS_BlackHole(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "nft")
	const shorter = 1400 // than goipip can know
	for name, c := range map[string]struct {
		options []string
		mtu     int // of the link between router and ns02, at the router
		passes  bool
	}{
		"off":         {nil, 1500, false},
		"auto":        {[]string{"-clamp-mss", "auto"}, 1500, true},
		"silent path": {[]string{"-clamp-mss", "auto"}, shorter, false},
		"number":      {[]string{"-clamp-mss", "1340"}, shorter, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := labtest.New(t)
			l := newTunnelLabIn(t, lab)
			for _, h := range []*netlab.Host{l.ns01, l.ns02, l.router} {
				run(t, h, "nft add table ip t; add chain ip t c { type filter hook postrouting priority 0 ; }; add rule ip t c icmp type destination-unreachable drop")
			}
			l.start(t, c.options...)
			client := behind(t, lab, l.end01, "client", "10.1.0", "10.2.0.0/24")
			server := behind(t, lab, l.end02, "server", "10.2.0", "10.1.0.0/24")
			if err := l.router.SetMTU("veth02_p", c.mtu); err != nil {
				t.Fatal(err)
			}
			p := path{client, server, netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.2.0.2")}
			p.pingBothWays(t)
			for _, p := range []path{p, p.reverse()} {
				ctx := labtest.Context(t)
				if !c.passes {
					var cancel func()
					ctx, cancel = context.WithTimeout(ctx, time.Second)
					defer cancel()
				}
				result, err := netlab.Transfer(ctx, p.a, p.b, netip.AddrPortFrom(p.addrB, 0), 300_000)
				if c.passes && err != nil {
					t.Error(err)
				}
				if !c.passes && (!errors.Is(err, context.DeadlineExceeded) || result.Bytes > 0) {
					t.Errorf("%d bytes passed: %v", result.Bytes, err)
				}
			}
		})
	}
}

// behind adds a host to the network net, a prefix of 24 bits without its last byte, behind an
// end of the tunnel, through which it reaches another network.
func behind(t *testing.T, lab *netlab.Lab, e end, name, net, other string) *netlab.Host {
	t.Helper()
	h, err := lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		lab.Veth(h, "eth0", e.host, "lan0"),
		h.AddAddr("eth0", net+".2/24"),
		e.host.AddAddr("lan0", net+".1/24"),
		h.AddRoute("default", net+".1"),
		h.Sysctl("net.ipv4.tcp_mtu_probing", "0"),
		e.host.Sysctl("net.ipv4.ip_forward", "1"),
		e.host.AddRoute(other, e.dev),
	); err != nil {
		t.Fatal(err)
	}
	return h
}
