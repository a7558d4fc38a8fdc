package encap_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

func FuzzEncap(f *testing.F) {
	const fixed, inherit = 0x28, 0xff
	f.Add([]byte(ipv4{}.bytes()), uint8(0), uint8(0), false, false)
	f.Add([]byte(ipv4{tos: 0xbb, df: true}.bytes()), uint8(64), uint8(fixed), false, true)
	f.Add([]byte(ipv4{options: []byte{0x94, 4, 0, 0}}.bytes()), uint8(1), uint8(inherit), true, false)
	f.Add([]byte(ipv4{ttl: -1}.bytes()), uint8(9), uint8(0), false, false)
	f.Add([]byte{}, uint8(0), uint8(0), false, false)
	f.Add([]byte{0x60}, uint8(0), uint8(0), false, false)
	f.Add([]byte(ipv4{}.bytes()[:19]), uint8(0), uint8(0), false, false)
	d := newDecapsulator(f)
	f.Fuzz(func(t *testing.T, b []byte, ttl, tos uint8, inheritTOS, noPMTUDisc bool) {
		inner := packet.IPv4(b)
		before := bytes.Clone(b)
		e := newEncapsulator(t, encap.Outer{TTL: ttl, TOS: tos, InheritTOS: inheritTOS, NoPMTUDisc: noPMTUDisc})
		untouched := bytes.Repeat([]byte{0xee}, encap.IPIP.HdrLen+1)
		hdr := bytes.Clone(untouched)

		v := e.Encap(hdr, inner)
		if !bytes.Equal(b, before) {
			t.Fatal("the inner packet changed")
		}
		if v != stats.Deliver {
			if !bytes.Equal(hdr, untouched) {
				t.Errorf("hdr was written with the verdict %v: % x", v, hdr)
			}
			if inner.Valid() && inner.TTL() > 0 && len(inner)+encap.IPIP.HdrLen <= packet.IPv4MaxLen {
				t.Errorf("a packet without fault: %v", v)
			}
			return
		}
		if hdr[encap.IPIP.HdrLen] != 0xee {
			t.Error("it wrote beyond the header")
		}
		outer := append(packet.IPv4(hdr[:encap.IPIP.HdrLen]), inner...)
		if !outer.Valid() || headerSum(outer) != 0xffff || outer.TotalLength() != len(outer) {
			t.Errorf("outer header % x before %d bytes", hdr[:encap.IPIP.HdrLen], len(inner))
		}
		if outer.TTL() == 0 {
			t.Error("outer TTL 0")
		}
		if want := !noPMTUDisc || inner.DF(); outer.DF() != want {
			t.Errorf("outer DF %v, want %v", outer.DF(), want)
		}
		if (outer.ID() == 0) != outer.DF() {
			t.Errorf("ID %#04x with DF %v", outer.ID(), outer.DF())
		}
		got, v := d.Decap(outer)
		if v == stats.Deliver && !bytes.Equal(got, before[:inner.TotalLength()]) {
			t.Errorf("after the round trip % x, before % x", got, before)
		}
		if v == stats.WrongPeer || v == stats.BadECN || v == stats.Malformed && inner.Valid() {
			t.Errorf("the other end says %v", v)
		}
	})
}

func FuzzDecap(f *testing.F) {
	f.Add([]byte(wrap(ipv4{}.bytes())))
	f.Add([]byte(wrapTOS(ce, ipv4{tos: ect0}.bytes())))
	f.Add([]byte(wrapTOS(ce, ipv4{}.bytes())))
	f.Add([]byte(wrap(ipv4{src: "127.0.0.1"}.bytes())))
	f.Add([]byte(wrap(ipv4{}.bytes()[:19])))
	f.Add([]byte(wrap([]byte{0x60})))
	f.Add([]byte(wrap(append(ipv4{}.bytes(), 0, 0, 0, 0))))
	f.Add([]byte(ipv4{
		src: local.String(), dst: remote.String(), proto: packet.ProtoIPIP,
		options: make([]byte, 40), payload: ipv4{options: make([]byte, 40)}.bytes(),
	}.bytes()))
	f.Add([]byte{})
	d := newDecapsulator(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := packet.IPv4(b)
		before := packet.IPv4(bytes.Clone(b))

		inner, v := d.Decap(outer)
		if v >= stats.NumReasons {
			t.Fatalf("verdict %d", v)
		}
		if v.Dropped() {
			if inner != nil {
				t.Errorf("%d bytes came with the verdict %v", len(inner), v)
			}
			return
		}
		if !before.Valid() || before.Source() != local.As4() || before.Destination() != remote.As4() {
			t.Fatalf("delivered from % x", before)
		}
		at := before.HdrLen()
		if !inner.Valid() || len(inner) != inner.TotalLength() || at+len(inner) > before.TotalLength() {
			t.Fatalf("%d bytes with the header % x out of % x", len(inner), inner, before)
		}
		// Only the ECN bits and the checksum may differ from the received ones, and
		// the header's sum is the same.
		sent := before[at : at+len(inner)]
		if got, want := headerSum(inner), headerSum(sent); got != want {
			t.Errorf("header sums to %#04x, before %#04x", got, want)
		}
		if inner.TOS()&^3 != sent.TOS()&^3 {
			t.Errorf("DSCP %#02x, before %#02x", inner.TOS()&^3, sent.TOS()&^3)
		}
		same := packet.IPv4(bytes.Clone(inner))
		same[1], same[10], same[11] = sent[1], sent[10], sent[11]
		if !bytes.Equal(same, sent) {
			t.Errorf("% x, before % x", inner, sent)
		}
		if inner.TTL() == 0 || inner.Source()[0] >= 224 || inner.Source()[0] == 127 || inner.Destination()[0] == 127 {
			t.Errorf("delivered % x", inner)
		}
		if !bytes.Equal(b[:at], before[:at]) || !bytes.Equal(b[at+len(inner):], before[at+len(inner):]) {
			t.Error("something outside of the inner packet changed")
		}
		inner[0] ^= 0xff
		if b[at] != inner[0] {
			t.Error("the inner packet is a copy")
		}
	})
}

func FuzzUnfinished(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	f.Add([]byte(segment(ipv4{}, 20, 100, partial)), tunMTU)
	f.Add([]byte(segment(ipv4{}, 32, 3000, partial)), tunMTU)
	f.Add([]byte(segment(ipv4{}, 60, 300, partial)), 68)
	f.Add([]byte(segment(ipv4{options: []byte{1, 1, 1, 0}}, 20, 300, partial)), 64)
	f.Add([]byte(segment(ipv4{}, 20, 100, complete)), tunMTU)
	f.Add([]byte(datagram(ipv4{}, 100, partial)), tunMTU)
	f.Add([]byte(datagram(ipv4{}, 3000, partial)), 0)
	f.Add([]byte(datagram(ipv4{}, 1, none)), -1)
	f.Add([]byte(randomIPv4(r)), tunMTU)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		p := packet.IPv4(b)
		if !p.Valid() {
			return // the caller passes only packets that Decap delivered
		}
		p = p[:p.TotalLength()]
		checkUnfinished(t, p, mtu)

		// The fuzzer does not guess sums: help it to the other half.
		switch {
		case p.Protocol() == packet.ProtoTCP && len(p.Payload()) >= packet.TCPHdrLen:
			putChecksum(p, packet.TCPCsumOffset, partial)
			checkUnfinished(t, p, mtu)
		case p.Protocol() == packet.ProtoUDP && len(p.Payload()) >= packet.UDPHdrLen:
			putChecksum(p, packet.UDPCsumOffset, partial)
			if h := checkUnfinished(t, p, mtu); h.NeedsCsum() == p.IsFragment() {
				t.Errorf("partial UDP, fragment %v: %+v", p.IsFragment(), h)
			}
		}
	})
}

// checkUnfinished fails if Unfinished returns a header that a kernel would
// refuse, or that leads to a wrong checksum.
func checkUnfinished(t *testing.T, p packet.IPv4, mtu int) packet.VNetHdr {
	t.Helper()
	before := bytes.Clone(p)
	h := encap.Unfinished(p, mtu)
	if !bytes.Equal(p, before) {
		t.Fatal("the packet changed")
	}
	if h == (packet.VNetHdr{}) {
		return h
	}
	if !h.NeedsCsum() || p.IsFragment() {
		t.Errorf("%+v for a fragment (%v)", h, p.IsFragment())
	}
	if int(h.CsumStart) != p.HdrLen() {
		t.Errorf("CsumStart %d after a header of %d bytes", h.CsumStart, p.HdrLen())
	}
	if n := int(h.HdrLen); n > len(p) || n < int(h.CsumStart+h.CsumOffset)+2 {
		t.Errorf("HdrLen %d in %d bytes, %+v", h.HdrLen, len(p), h)
	}
	switch h.GSOType {
	case packet.VNetGSONone:
		if h.GSOSize != 0 {
			t.Errorf("GSO size %d without GSO", h.GSOSize)
		}
	case packet.VNetGSOTCPv4:
		if p.Protocol() != packet.ProtoTCP || len(p) <= mtu || h.GSOSize == 0 || int(h.GSOSize) >= len(p) {
			t.Errorf("%+v for %d bytes of protocol %d, mtu %d", h, len(p), p.Protocol(), mtu)
		}
	default:
		t.Errorf("GSO type %d", h.GSOType)
	}
	finished := packet.IPv4(bytes.Clone(p))
	if !packet.FinishChecksum(finished, h) {
		t.Fatalf("%+v does not name a field of the packet", h)
	}
	if got := packet.Sum(finished.Payload(), packet.PseudoHeaderSum(finished)); got != 0xffff {
		t.Errorf("finished, it sums to %#04x", got)
	}
	return h
}
