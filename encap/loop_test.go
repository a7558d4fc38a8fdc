package encap_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// G4, RFC 2003 §3.2: a packet that left this tunnel does not enter it again.
func TestG4_Loop(t *testing.T) {
	here, there := local.String(), remote.String()
	tests := []struct {
		name  string
		inner ipv4
		want  stats.Reason
	}{
		{"from somewhere else", ipv4{}, stats.Deliver},
		{"from the remote address", ipv4{src: there}, stats.Loop},
		{"from the remote address to the local one", ipv4{src: there, dst: here}, stats.Loop},
		{"from the remote address, the other end's tunnel", ipv4{src: there, dst: here, proto: packet.ProtoIPIP}, stats.Loop},
		{"our own outer packet", ipv4{src: here, dst: there, proto: packet.ProtoIPIP}, stats.Loop},
		{"a part of our own outer packet", ipv4{src: here, dst: there, proto: packet.ProtoIPIP, offset: 1480}, stats.Loop},
		// With a route to the remote address into the tunnel (T4), these pass once; the
		// outer packet is a loop then.
		{"from the local address to the remote one", ipv4{src: here, dst: there}, stats.Deliver},
		{"another tunnel of this host", ipv4{src: here, dst: "10.0.0.2", proto: packet.ProtoIPIP}, stats.Deliver},
		{"another tunnel to the remote host", ipv4{dst: there, proto: packet.ProtoIPIP}, stats.Deliver},
		{"to the local address", ipv4{dst: here}, stats.Deliver},
		{"TTL 0 comes first", ipv4{src: there, ttl: -1}, stats.TTLExpired},
	}
	e := newEncapsulator(t, encap.Outer{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == stats.Deliver {
				mustEncap(t, e, tt.inner.bytes())
			} else {
				checkNotEncapsulated(t, e, tt.inner.bytes(), tt.want)
			}
		})
	}
}

// A packet routed into its own tunnel again is dropped the first time.
func TestG4_OwnOutput(t *testing.T) {
	for _, o := range []encap.Outer{{}, {TTL: 9, NoPMTUDisc: true}} {
		e := newEncapsulator(t, o)
		inner := ipv4{}.bytes()
		outer := append(mustEncap(t, e, inner), inner...)
		checkNotEncapsulated(t, e, outer, stats.Loop)
	}
}

// Given the inner header and a length, EncapHeader writes the same as Encap.
func TestEncapHeader(t *testing.T) {
	for name, o := range map[string]encap.Outer{
		"default":          {},
		"fixed":            {TTL: 3, TOS: 0xb8},
		"inherit":          {InheritTOS: true},
		"without pmtudisc": {NoPMTUDisc: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, inner := range []packet.IPv4{
				ipv4{tos: 0xbb, ttl: 7}.bytes(),
				ipv4{df: true, tos: 0x02}.bytes(),
				ipv4{mf: true, offset: 1480, options: make([]byte, 40), payload: make([]byte, 1400)}.bytes(),
			} {
				want := mustEncap(t, newEncapsulator(t, o), inner)
				got := packet.IPv4(make([]byte, encap.IPIP.HdrLen))
				newEncapsulator(t, o).EncapHeader(got, inner[:inner.HdrLen()], len(inner))
				for _, hdr := range []packet.IPv4{want, got} {
					if headerSum(hdr) != 0xffff {
						t.Errorf("header sums to %#04x", headerSum(hdr))
					}
					if !hdr.DF() {
						hdr.SetID(1) // each sequence of IDs starts at random
						hdr.UpdateChecksum()
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("header (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// A packet that may be fragmented needs an ID (RFC 6864 §4.3). Nothing else in its
// header changes.
func TestClearDF(t *testing.T) {
	for name, o := range map[string]encap.Outer{"default": {}, "others": {TTL: 9, InheritTOS: true}} {
		t.Run(name, func(t *testing.T) {
			e := newEncapsulator(t, o)
			var last uint16
			for range 3 {
				before := mustEncap(t, e, ipv4{df: true, tos: 0xb9}.bytes())
				outer := append(packet.IPv4{}, before...)
				e.ClearDF(outer)
				if outer.DF() || outer.ID() == 0 || outer.ID() == last || headerSum(outer) != 0xffff {
					t.Errorf("DF %v, ID %#04x after %#04x, header sums to %#04x", outer.DF(), outer.ID(), last, headerSum(outer))
				}
				last = outer.ID()
				outer.SetDF(true)
				outer.SetID(before.ID())
				outer.UpdateChecksum()
				if diff := cmp.Diff(before, outer); diff != "" {
					t.Errorf("but for DF and ID (-before +after):\n%s", diff)
				}
			}
		})
	}
}
