package netlab_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/ipv4"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// onWire has ns01 ping through the tunnel, with DF or without, and returns the headers with which the request reaches the
// router. What makes it known there is its size, so each ping on a capture has another one.
func (l *tunnelLab) onWire(t *testing.T, c *netlab.Capture, o netlab.PingOptions) (outer, inner *ipv4.Header) {
	t.Helper()
	o.Reply = l.untouched(t)
	l.ping(t, o)
	_, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		var ok bool
		outer, inner, ok = headers(p)
		return ok && !p.Outgoing && inner.TotalLen == ipv4.HeaderLen+8+o.Size
	})
	if err != nil {
		t.Fatal(err)
	}
	return outer, inner
}

// withOptions runs fn in a lab where goipip was started with options, with a capture on the router's side of ns01.
func withOptions(t *testing.T, options string, fn func(t *testing.T, l *tunnelLab, c *netlab.Capture)) {
	t.Run("options "+options, func(t *testing.T) {
		t.Parallel()
		l := newTunnelLab(t)
		l.start(t, strings.Fields(options)...)
		fn(t, l, startCapture(t, l.router, "veth01_p"))
	})
}

func TestT5_DF(t *testing.T) {
	t.Parallel()
	for options, want := range map[string][2]bool{ // for an inner packet without DF, and with it
		"":                                 {true, true},
		"--nopmtudisc":                     {false, true},
		"--nopmtudisc --offload off":       {false, true},
		"--nopmtudisc --tos b8 --queues 2": {false, true},
	} {
		withOptions(t, options, func(t *testing.T, l *tunnelLab, c *netlab.Capture) {
			for i, df := range []bool{false, true} {
				outer, inner := l.onWire(t, c, netlab.PingOptions{Size: 100 + i, DF: df})
				if got := outer.Flags&ipv4.DontFragment != 0; got != want[i] {
					t.Errorf("outer DF is %t for inner DF %t, want %t", got, df, want[i])
				}
				if got := inner.Flags&ipv4.DontFragment != 0; got != df {
					t.Errorf("inner DF is %t on the wire, was %t", got, df)
				}
			}
		})
	}
}

func TestT9_TOS(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]map[int]int{ // by the inner TOS
		"":                 {0x00: 0x00, 0x01: 0x01, 0x02: 0x02, 0x03: 0x02, 0xb8: 0x00, 0xbb: 0x02},
		"--tos b8":         {0x00: 0xb8, 0x01: 0xb9, 0x02: 0xba, 0x03: 0xba, 0x28: 0xb8},
		"--tos 0xfe":       {0x00: 0xfc, 0x01: 0xfd, 0x02: 0xfe, 0x03: 0xfe},
		"--tos 0xff":       {0x00: 0x00, 0x01: 0x01, 0xb8: 0xb8}, // the lowest bit inherits
		"--tos inherit":    {0x00: 0x00, 0x01: 0x01, 0x02: 0x02, 0x03: 0x02, 0xb8: 0xb8, 0xbb: 0xba},
		"--tos inherit/10": {0x00: 0x00, 0x28: 0x28},
	} {
		withOptions(t, options, func(t *testing.T, l *tunnelLab, c *netlab.Capture) {
			for in, out := range want {
				outer, inner := l.onWire(t, c, netlab.PingOptions{Size: 100 + in, TOS: in})
				if outer.TOS != out {
					t.Errorf("outer TOS is %#02x for inner TOS %#02x, want %#02x", outer.TOS, in, out)
				}
				if inner.TOS != in {
					t.Errorf("inner TOS is %#02x on the wire, was %#02x", inner.TOS, in)
				}
			}
		})
	}
}

func TestT10_TTL(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]map[int]int{ // by the inner TTL
		"":              {1: 1, 2: 2, 33: 33, 64: 64, 255: 255},
		"--ttl inherit": {64: 64},
		"--ttl 7":       {1: 7, 64: 7, 255: 7},
		"--ttl 255":     {1: 255, 64: 255},
	} {
		withOptions(t, options, func(t *testing.T, l *tunnelLab, c *netlab.Capture) {
			for in, out := range want {
				if out == 1 {
					// The packet ends on the router, which says so. The next ones must not suffer from that.
					l.dead(t, netlab.PingOptions{TTL: in})
					continue
				}
				outer, inner := l.onWire(t, c, netlab.PingOptions{Size: 100 + in, TTL: in})
				if outer.TTL != out {
					t.Errorf("outer TTL is %d for inner TTL %d, want %d", outer.TTL, in, out)
				}
				if inner.TTL != in { // O9
					t.Errorf("inner TTL is %d on the wire, was %d", inner.TTL, in)
				}
			}
		})
	}
}

func TestT11_OuterHeader(t *testing.T) {
	t.Parallel()
	const requests = 200
	for _, options := range []string{"", "--nopmtudisc"} {
		withOptions(t, options, func(t *testing.T, l *tunnelLab, c *netlab.Capture) {
			l.ping(t, netlab.PingOptions{Count: requests})
			l.onWire(t, c, netlab.PingOptions{Size: 100}) // Now the capture has them all.
			ids := map[int]bool{}
			for _, p := range c.Packets() {
				outer, _, ok := headers(p)
				if !ok || p.Outgoing {
					continue
				}
				if outer.Version != 4 || outer.Len != ipv4.HeaderLen || outer.TotalLen != len(p.Data) ||
					outer.Src.String() != l.end01.local || outer.Dst.String() != l.end01.remote {
					t.Fatalf("outer header %+v of a packet of %d bytes", outer, len(p.Data))
				}
				if first := p.Layers()[0]; !strings.HasSuffix(first, "ok") {
					t.Fatal(first)
				}
				if outer.Flags&ipv4.DontFragment == 0 {
					ids[outer.ID] = true
				}
			}
			// RFC 6864: IDs matter to packets that may be fragmented.
			if want := map[string]int{"": 0, "--nopmtudisc": requests + 1}[options]; len(ids) != want || ids[0] {
				t.Errorf("%d different IDs, want %d and none of them 0 (which is %t)", len(ids), want, ids[0])
			}
		})
	}
}

// The MTU of the link is that of the route less the outer header, and what fits it passes.
func TestO2_MTU(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		underlay, want int
		options        []string
	}{
		"baby jumbo": {underlay: 1520, want: 1500},
		"jumbo":      {underlay: 9000, want: 8980},
		"small":      {underlay: 1280, want: 1260},
		"by option":  {underlay: 1500, want: 1400, options: []string{"--mtu", "1400"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			if err := errors.Join(
				l.ns01.SetMTU("veth01", tt.underlay),
				l.router.SetMTU("veth01_p", tt.underlay),
				l.router.SetMTU("veth02_p", tt.underlay),
				l.ns02.SetMTU("veth02", tt.underlay),
			); err != nil {
				t.Fatal(err)
			}
			l.start(t, tt.options...)
			for _, e := range []end{l.end01, l.end02} {
				link, err := e.host.Netlink().LinkByName(e.dev)
				if err != nil {
					t.Fatal(err)
				}
				if link.Attrs().MTU != tt.want {
					t.Errorf("mtu of %s is %d, want %d", e.dev, link.Attrs().MTU, tt.want)
				}
			}
			largest := tt.want - ipv4.HeaderLen - 8
			l.ping(t, netlab.PingOptions{Size: largest, DF: true})
			l.reverse().ping(t, netlab.PingOptions{Size: largest, DF: true})
			l.refused(t, largest+1)
			l.transfer(t, transferLen)
		})
	}
}

// A third host is behind ns02, which forwards into the tunnel. That takes one from the TTL, and the tunnel takes nothing.
func TestO9_Forwarded(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun")
	for _, options := range []string{"", "--offload off", "--queues 2"} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			lab := labtest.New(t)
			l := newTunnelLabIn(t, lab)
			ns03 := newHost(t, lab, "ns03")
			if err := errors.Join(
				lab.Veth(l.ns02, "veth03_p", ns03, "veth03"),
				l.ns02.AddAddr("veth03_p", "10.3.0.2/24"),
				ns03.AddAddr("veth03", "10.3.0.3/24"),
				ns03.AddRoute("default", "10.3.0.2"),
				l.ns02.Sysctl("net.ipv4.ip_forward", "1"),
			); err != nil {
				t.Fatal(err)
			}
			l.start(t, strings.Fields(options)...)
			if err := l.ns01.AddRoute("10.3.0.0/24", "tun01"); err != nil {
				t.Fatal(err)
			}
			p := path{a: l.ns01, b: ns03, addrA: l.addrA, addrB: netip.MustParseAddr("10.3.0.3")}
			for _, p := range []path{p, p.reverse()} {
				p.ping(t, netlab.PingOptions{Reply: func(r netlab.Reply) {
					if r.TTL != 63 {
						t.Errorf("ttl=%d over one router, want 63", r.TTL)
					}
				}})
				p.ping(t, netlab.PingOptions{Size: fragmented, Count: 5})
			}
			p.carriesTCP(t)
			p.datagrams(t, 500, maxEcho)
			p.reverse().datagrams(t, 500, maxEcho)
			p.datagrams(t, 50, 8000)
		})
	}
}
