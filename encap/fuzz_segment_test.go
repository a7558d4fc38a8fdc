package encap_test

import (
	"bytes"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
)

// For any packet and header of a device: valid segments with the payload of the
// superpacket, or none.
func FuzzSegment(f *testing.F) {
	data := bytes.Repeat([]byte{1, 2, 3}, 33) // short: the fuzzer is faster with it
	for _, p := range []packet.IPv4{
		tcpSegment{options: timestamps, data: data, flags: packet.TCPCwr | packet.TCPPsh | packet.TCPFin}.build(partial),
		tcpSegment{ip: ipv4{options: fortyBytes, df: true}, options: fortyBytes, data: data}.build(partial),
		udpDatagram{data: data}.build(partial),
		ipv4{}.bytes(),
		ipv4{mf: true}.bytes(),
		{},
	} {
		h := packet.VNetHdr{Flags: packet.VNetNeedsCsum, GSOType: packet.VNetGSOTCPv4}
		if p.Valid() && len(p) > 100 {
			h = superHdr(p, 40)
		}
		f.Add([]byte(p), h.Flags, h.GSOType, h.GSOSize, h.CsumStart, h.CsumOffset)
	}
	f.Fuzz(func(t *testing.T, b []byte, flags, gsoType uint8, gsoSize, csumStart, csumOffset uint16) {
		p := packet.IPv4(b)
		h := packet.VNetHdr{Flags: flags, GSOType: gsoType, GSOSize: gsoSize, CsumStart: csumStart, CsumOffset: csumOffset}
		if _, ok := encap.Segment(p, h); !ok {
			return
		}
		if !p.Valid() || p.IsFragment() || p.TotalLength() != len(p) || int(csumStart) != p.HdrLen() {
			t.Fatalf("it takes %d bytes, %+v: % x", len(p), h, b)
		}
		tcp := p.Protocol() == packet.ProtoTCP
		hdrLen := p.HdrLen() + packet.UDPHdrLen
		if tcp {
			hdrLen = p.HdrLen() + packet.TCP(p.Payload()).HdrLen()
		}
		var payload []byte
		all := cut(t, p, h)
		if want := (len(p) - hdrLen + int(gsoSize) - 1) / int(gsoSize); len(all) != want || want == 0 {
			t.Fatalf("%d segments, want %d", len(all), want)
		}
		for i, s := range all {
			if !s.Valid() || s.TotalLength() != len(s) || s.HdrLen() != p.HdrLen() ||
				slowSum(s[:s.HdrLen()], 0) != 0xffff || slowTransportSum(s) != 0xffff {
				t.Fatalf("segment %d: % x", i, s[:hdrLen])
			}
			if s.ID() != p.ID()+uint16(i) || s.TOS() != p.TOS() || s.TTL() != p.TTL() || !bytes.Equal(s[6:10], p[6:10]) ||
				!bytes.Equal(s[12:p.HdrLen()+4], p[12:p.HdrLen()+4]) {
				t.Errorf("segment %d: IP header % x of % x", i, s[:p.HdrLen()], p[:p.HdrLen()])
			}
			switch {
			case !tcp && (packet.UDP(s.Payload()).Length() != len(s.Payload()) || packet.UDP(s.Payload()).Checksum() == 0):
				t.Errorf("segment %d: UDP header % x", i, s.Payload()[:8])
			case tcp && packet.TCP(s.Payload()).Seq() != packet.TCP(p.Payload()).Seq()+uint32(len(payload)):
				t.Errorf("segment %d: sequence number %d", i, packet.TCP(s.Payload()).Seq())
			case tcp && !bytes.Equal(packet.TCP(s.Payload()).Options(), packet.TCP(p.Payload()).Options()):
				t.Errorf("segment %d: other options", i)
			}
			payload = append(payload, s[hdrLen:]...)
		}
		if !bytes.Equal(payload, p[hdrLen:]) {
			t.Error("the payload is not that of the superpacket")
		}
	})
}
