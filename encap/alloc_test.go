package encap_test

import (
	"net/netip"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Functions called for each packet allocate nothing. Each case also reports whether
// it did its work, as a function that does nothing allocates nothing either.
func TestAllocs(t *testing.T) {
	var (
		host      encap.Host
		withDF    = newEncapsulatorOf(t, encap.Outer{}, encap.NewIDs(), &host)
		withoutDF = newEncapsulator(t, encap.Outer{NoPMTUDisc: true, InheritTOS: true})
		d         = newDecapsulatorOf(t, &host)
		hdr       = packet.IPv4(make([]byte, encap.IPIP.HdrLen))
		inner     = ipv4{tos: ect0}.bytes()
		dropped   = ipv4{ttl: -1}.bytes()
		plain     = wrap(inner)
		marked    = wrapTOS(ce, inner)
		badECN    = wrapTOS(ce, ipv4{}.bytes())
		own       = wrap(ipv4{src: "10.1.0.1"}.bytes())
		super     = segment(ipv4{}, 32, 60000, partial)
		whole     = segment(ipv4{}, 32, 1400, complete)
		loop      = ipv4{src: remote.String()}.bytes()
		deep      = nest(4, "10.1.0.1")
		notDeep   = nest(3, "10.1.0.1")
		large     = ipv4{payload: make([]byte, 3000), options: []byte{0x44, 4, 5, 0}}.bytes()
		multicast = ipv4{dst: "224.0.0.5"}.bytes()
		message   = make([]byte, encap.MaxICMPLen)
		headers   [3][encap.MaxHdrLen]byte
		lastID    uint16
		opening   = syn(ipv4{}, tcpOptions, 0, complete)
		mss       = uint16(1460)
	)
	host.Set([]netip.Addr{netip.MustParseAddr("10.1.0.1")})

	tests := []struct {
		name string
		work func() bool
	}{
		{"Encap", func() bool {
			clear(hdr)
			return withDF.Encap(hdr, inner) == stats.Deliver && headerSum(hdr) == 0xffff &&
				hdr.TotalLength() == encap.IPIP.HdrLen+len(inner) && hdr.Destination() == remote.As4()
		}},
		{"ClampMSS", func() bool {
			mss--
			encap.ClampMSS(opening, mss, false)
			got, _ := packet.TCP(opening.Payload()).MSS()
			return opening.HasSYN() && got == mss && transportSum(opening) == 0xffff
		}},
		{"Encap, with an ID", func() bool {
			before := lastID
			v := withoutDF.Encap(hdr, inner)
			lastID = hdr.ID()
			return v == stats.Deliver && lastID != before && headerSum(hdr) == 0xffff
		}},
		{"Encap, drop", func() bool { return withDF.Encap(hdr, dropped) == stats.TTLExpired }},
		{"Encap, loop", func() bool { return withDF.Encap(hdr, loop) == stats.Loop }},
		{"Encap, too deep", func() bool { return withDF.Encap(hdr, deep) == stats.TooDeep }},
		{"Encap, nested", func() bool { return withDF.Encap(hdr, notDeep) == stats.Deliver }},
		{"EncapHeader", func() bool {
			clear(hdr)
			withDF.EncapHeader(hdr, inner[:inner.HdrLen()], 1400)
			return headerSum(hdr) == 0xffff && hdr.TotalLength() == encap.IPIP.HdrLen+1400
		}},
		{"ClearDF", func() bool {
			hdr.SetDF(true)
			withDF.ClearDF(hdr)
			return !hdr.DF() && headerSum(hdr) == 0xffff
		}},
		{"Fragment", func() bool {
			n := 0
			fragments := encap.Fragment(large[:large.HdrLen()], large.Payload(), 1480)
			for i := range headers {
				f, payload := fragments.Next(headers[i][encap.IPIP.HdrLen:])
				if headerSum(f) != 0xffff {
					return false
				}
				n += len(payload)
			}
			f, _ := fragments.Next(headers[0][:])
			return n == 3000 && f == nil
		}},
		{"ICMPError", func() bool {
			p := encap.ICMPError(message, large, packet.ICMPUnreachable, packet.ICMPCodeFragNeeded, 1400)
			return len(p) == encap.MaxICMPLen && headerSum(p) == 0xffff
		}},
		{"ICMPError, none", func() bool { return encap.ICMPError(message, multicast, 3, 4, 1400) == nil }},
		{"Decap", func() bool {
			got, v := d.Decap(plain)
			return v == stats.Deliver && len(got) == len(inner) && got.TOS() == ect0
		}},
		{"Decap, CE", func() bool {
			copy(marked[packet.IPv4HdrLen:], inner)
			got, v := d.Decap(marked)
			return v == stats.Deliver && got.TOS() == ce && headerSum(got) == 0xffff
		}},
		{"Decap, bad ECN", func() bool {
			_, v := d.Decap(badECN)
			return v == stats.BadECN
		}},
		{"Decap, own address", func() bool {
			_, v := d.Decap(own)
			return v == stats.Martian
		}},
		{"Unfinished, superpacket", func() bool { return encap.Unfinished(super, tunMTU).GSOSize == tunMTU-52 }},
		{"Unfinished, complete", func() bool { return encap.Unfinished(whole, tunMTU) == packet.VNetHdr{} }},
		{"Reason", func() bool { return stats.BadECN.String() != "" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			failed := 0
			allocs := testing.AllocsPerRun(100, func() {
				if !tt.work() {
					failed++
				}
			})
			if failed > 0 {
				t.Errorf("%d runs of 101 did not do the work", failed)
			}
			if allocs != 0 {
				t.Errorf("%v allocations a run, want 0", allocs)
			}
		})
	}
}
