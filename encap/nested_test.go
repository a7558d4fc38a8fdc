package encap_test

import (
	"net/netip"
	"slices"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// nest returns a packet within n outer headers from src.
func nest(n int, src string) packet.IPv4 {
	p := ipv4{}.bytes()
	for range n {
		p = ipv4{src: src, dst: "10.9.9.9", proto: packet.ProtoIPIP, payload: p}.bytes()
	}
	return p
}

// A packet with the headers of four tunnels of this host gets no fifth.
func TestT14_TooDeep(t *testing.T) {
	const here, elsewhere = "10.1.0.1", "10.1.0.3"
	within := func(outer ipv4, p packet.IPv4) packet.IPv4 {
		outer.src, outer.dst, outer.proto, outer.payload = here, "10.9.9.9", packet.ProtoIPIP, p
		return outer.bytes()
	}
	short := nest(3, here)
	badIHL := nest(4, here)
	badIHL[packet.IPv4HdrLen] = 4<<4 | 4
	version6 := nest(4, here)
	version6[2*packet.IPv4HdrLen] = 6<<4 | 5

	for _, tt := range []struct {
		name  string
		inner packet.IPv4
		want  stats.Reason
	}{
		{"no tunnel", nest(0, here), stats.Deliver},
		{"1", nest(1, here), stats.Deliver},
		{"3", nest(3, here), stats.Deliver},
		{"4", nest(4, here), stats.TooDeep},
		{"5", nest(5, here), stats.TooDeep},
		{"40", nest(40, here), stats.TooDeep},
		{"10 of others", nest(10, elsewhere), stats.Deliver},
		{"3 around those of others", within(ipv4{}, within(ipv4{}, within(ipv4{}, nest(5, elsewhere)))), stats.Deliver},
		{"another's around 4", ipv4{src: elsewhere, proto: packet.ProtoIPIP, payload: nest(4, here)}.bytes(), stats.Deliver},
		{"options", within(ipv4{options: make([]byte, 40)}, nest(3, here)), stats.TooDeep},
		{"a first fragment", within(ipv4{mf: true}, nest(3, here)), stats.TooDeep},
		{"a later fragment, whose payload looks like headers", within(ipv4{mf: true, offset: 800}, nest(3, here)), stats.Deliver},
		{"a later fragment at the fourth level", within(ipv4{}, within(ipv4{}, within(ipv4{}, within(ipv4{offset: 8}, nil)))), stats.TooDeep},
		{"cut in the third header", short[:2*packet.IPv4HdrLen+19], stats.Deliver},
		{"a header length of 16", badIHL, stats.Deliver},
		{"not IPv4 in the third", version6, stats.Deliver},
		{"TTL 0 comes first", within(ipv4{ttl: -1}, nest(4, here)), stats.TTLExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var host encap.Host
			e := newEncapsulatorOf(t, encap.Outer{}, encap.NewIDs(), &host)
			mustEncap(t, e, slices.Clone(nest(4, here))) // the host has no addresses yet
			host.Set([]netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr(here)})
			if tt.want == stats.Deliver {
				mustEncap(t, e, tt.inner)
			} else {
				checkNotEncapsulated(t, e, tt.inner, tt.want)
			}
		})
	}
}
