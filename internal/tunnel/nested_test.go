package tunnel_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Tunnels of one host within each other: four are enough.
func TestT14_NestedTunnels(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	n := across(t)
	// tun1 goes through tun2, that through tun3, and so on to eth0.
	const tunnels = 6
	var sites [tunnels + 1]*site
	for i := range tunnels { // before the first tunnel, so that each knows all of them
		must(t, n.a.host.AddAddr("lo", fmt.Sprintf("10.0.%d.1/32", i+1)))
	}
	for i := tunnels; i > 0; i-- {
		near := newSite(n.a.host, fmt.Sprintf("10.0.%d.1", i), fmt.Sprintf("10.1.%d.1", i))
		far := newSite(nil, fmt.Sprintf("10.0.%d.2", i), fmt.Sprintf("10.1.%d.2", i))
		cfg := config(near, far)
		cfg.Name = fmt.Sprintf("tun%d", i)
		via := fmt.Sprintf("tun%d", i+1)
		if i == tunnels {
			via = "192.168.6.1"
		}
		must(t, n.a.host.AddRoute(cfg.Remote.String()+"/32", via))
		near.start(t, cfg)
		sites[i] = near
	}
	wire := capture(t, n.r1, "a0")
	for first := 1; first <= tunnels; first++ {
		// Into the first of so many tunnels.
		depth := tunnels - first + 1
		inject(t, n.a.host, fmt.Sprintf("tun%d", first), echoReply(stranger, n.b.inner, 100+first))
		if depth <= 4 {
			p, err := wire.Wait(labtest.Context(t), func(p netlab.Captured) bool {
				headers, inner := unnest(p.Data)
				return headers == depth && len(inner) == 100+first
			})
			must(t, err)
			if outer := packet.IPv4(p.Data); outer.Source() != sites[tunnels].outer.As4() || packet.Sum(outer[:20], 0) != 0xffff {
				t.Errorf("%d tunnels: the outer header is % x", depth, outer[:20])
			}
			continue
		}
		last := sites[first+4].tunnel // the fifth
		labtest.WaitFor(t, "the packet to be dropped", func() bool { return last.Stats().TX.Drops[stats.TooDeep] > 0 })
		now := last.Stats()
		if got := now.TX.Drops[stats.TooDeep]; got != 1 || now.Link().TXErrors != 1 {
			t.Errorf("%d tunnels: tun%d has counted %+v, want one too deep", depth, first+4, now.TX)
		}
	}
	for i, s := range sites[1:] {
		passed, dropped := i+1, 0
		if passed >= 5 {
			passed, dropped = 4, 1
		}
		labtest.WaitFor(t, "all packets to be counted", func() bool { return total(s.tunnel.Stats().TX) == uint64(passed+dropped) })
		if got := s.tunnel.Stats().TX; got.Packets != uint64(passed) || got.Drops[stats.TooDeep] != uint64(dropped) {
			t.Errorf("tun%d has counted %+v, want %d passed and %d too deep", i+1, got, passed, dropped)
		}
	}
}

// unnest returns the packet within outer headers, and how many those are.
func unnest(p packet.IPv4) (headers int, inner packet.IPv4) {
	for p.Protocol() == unix.IPPROTO_IPIP {
		p = p.Payload()
		headers++
	}
	return headers, p
}
