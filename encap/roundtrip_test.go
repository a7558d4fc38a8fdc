package encap_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// unicast returns a random address that is no martian.
func unicast(r *rand.Rand) string {
	for {
		a := netip.AddrFrom4([4]byte(randomBytes(r, 4)))
		if first := a.As4()[0]; first != 0 && first != 127 && first < 224 {
			return a.String()
		}
	}
}

// randomIPv4 returns a random packet that a tunnel must carry.
func randomIPv4(r *rand.Rand) packet.IPv4 {
	return ipv4{
		src: unicast(r), dst: unicast(r),
		tos:     uint8(r.Uint32()),
		ttl:     1 + r.IntN(255),
		proto:   uint8(r.Uint32()),
		id:      uint16(r.Uint32()),
		df:      r.IntN(2) == 0,
		mf:      r.IntN(4) == 0,
		offset:  max(0, r.IntN(4*1480)-3*1480) &^ 7,
		options: randomBytes(r, 4*max(0, r.IntN(22)-11)),
		payload: randomBytes(r, r.IntN(1480)),
	}.bytes()
}

// With any configuration of the outer header, a packet arrives unchanged at the other
// end.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(2003, 6040))
	d := newDecapsulator(t)
	for i := range 5000 {
		o := encap.Outer{
			TTL: uint8(r.Uint32()), TOS: uint8(r.Uint32()),
			InheritTOS: r.IntN(2) == 0, NoPMTUDisc: r.IntN(2) == 0,
		}
		inner := randomIPv4(r)
		outer := append(mustEncap(t, newEncapsulator(t, o), inner), inner...)
		if !outer.Valid() || outer.TotalLength() != len(outer) || headerSum(outer) != 0xffff {
			t.Fatalf("packet %d, %+v: outer header % x", i, o, outer[:encap.IPIP.HdrLen])
		}
		outer = append(outer, randomBytes(r, r.IntN(8))...) // padding
		got, v := d.Decap(outer)
		if v != stats.Deliver {
			t.Fatalf("packet %d, %+v, inner header % x: %v", i, o, inner[:inner.HdrLen()], v)
		}
		if !bytes.Equal(got, inner) {
			t.Fatalf("packet %d, %+v (-want +got):\n%s", i, o, cmp.Diff([]byte(inner), []byte(got)))
		}
	}
}

// A tunnel in another tunnel is two round trips.
func TestRoundTrip_Nested(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	e, d := newEncapsulator(t, encap.Outer{}), newDecapsulator(t)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	e2, err := encap.NewEncapsulator(encap.Outer{Format: encap.IPIP, Local: a, Remote: b}, encap.NewIDs(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d2, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, Local: b, Remote: a}, nil)
	if err != nil {
		t.Fatal(err)
	}
	inner := randomIPv4(r)
	once := append(mustEncap(t, e2, inner), inner...)
	twice := append(mustEncap(t, e, once), once...)
	got := mustDecap(t, d2, mustDecap(t, d, twice))
	if diff := cmp.Diff([]byte(inner), []byte(got)); diff != "" {
		t.Errorf("two levels (-want +got):\n%s", diff)
	}
}
