package encap_test

import (
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

func TestFormat_Invalid(t *testing.T) {
	for name, f := range map[string]encap.Format{
		"zero":              {},
		"no protocol":       {HdrLen: packet.IPv4HdrLen},
		"no header":         {Protocol: packet.ProtoIPIP},
		"half a header":     {Protocol: packet.ProtoIPIP, HdrLen: 19},
		"a longer header":   {Protocol: packet.ProtoUDP, HdrLen: 28},
		"a negative length": {Protocol: packet.ProtoIPIP, HdrLen: -20},
	} {
		o := encap.Outer{Format: f, Local: local, Remote: remote}
		e, err := encap.NewEncapsulator(o, encap.NewIDs(), nil)
		if e != nil {
			t.Errorf("%s: an Encapsulator", name)
		}
		checkAddressError(t, err, "format")
		d, err := encap.NewDecapsulator(o, nil)
		if d != nil {
			t.Errorf("%s: a Decapsulator", name)
		}
		checkAddressError(t, err, "format")
	}
	o := encap.Outer{Format: encap.IPIP, Local: local, Remote: remote}
	if e, err := encap.NewEncapsulator(o, nil, nil); e != nil || err == nil {
		t.Errorf("without IDs: %v, %v", e, err)
	}
}

// The protocol of the outer header is that of the Format, in both directions.
func TestFormat_Protocol(t *testing.T) {
	const ipip94 = 94 // "IP-within-IP" of KA9Q (IANA)
	other := encap.Format{Protocol: ipip94, HdrLen: packet.IPv4HdrLen}
	e := newEncapsulatorOf(t, encap.Outer{Format: other}, encap.NewIDs(), nil)
	if e.HdrLen() != packet.IPv4HdrLen {
		t.Errorf("HdrLen %d", e.HdrLen())
	}
	inner := ipv4{}.bytes()
	outer := append(mustEncap(t, e, inner), inner...)
	if outer.Protocol() != ipip94 || headerSum(outer) != 0xffff {
		t.Errorf("outer header % x", outer[:packet.IPv4HdrLen])
	}
	checkNotEncapsulated(t, e, outer, stats.Loop) // G4

	d, err := encap.NewDecapsulator(encap.Outer{Format: other, Local: remote, Remote: local}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustDecap(t, d, outer)
	checkDrop(t, d, wrap(inner), stats.Malformed)
	checkDrop(t, newDecapsulator(t), outer, stats.Malformed)
}
