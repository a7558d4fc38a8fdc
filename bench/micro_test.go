package bench

import (
	"fmt"
	"net/netip"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Ends of the tunnel that the packets of the benchmarks go through.
var (
	localEnd  = netip.MustParseAddr("10.90.6.238")
	remoteEnd = netip.MustParseAddr("192.168.1.129")
)

func BenchmarkEncap(b *testing.B) {
	for _, bm := range []struct {
		name  string
		size  int
		outer encap.Outer
	}{
		{"64", 64, encap.Outer{TTL: 64}},
		{"1480", 1480, encap.Outer{TTL: 64}},
		{"1480/inherit", 1480, encap.Outer{InheritTOS: true, NoPMTUDisc: true}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			bm.outer.Format, bm.outer.Local, bm.outer.Remote = encap.IPIP, localEnd, remoteEnd
			e, err := encap.NewEncapsulator(bm.outer, encap.NewIDs(), nil)
			if err != nil {
				b.Fatal(err)
			}
			hdr := packet.IPv4(make([]byte, packet.IPv4HdrLen))
			inner := tcpPacket(bm.size)
			v := stats.NumReasons
			b.SetBytes(int64(bm.size))
			b.ReportAllocs()
			for b.Loop() {
				v = e.Encap(hdr, inner)
			}
			if v != stats.Deliver || hdr.TotalLength() != packet.IPv4HdrLen+bm.size || packet.Sum(hdr, 0) != 0xffff {
				b.Fatalf("Encap = %v, header % x", v, hdr)
			}
		})
	}
}

func BenchmarkDecap(b *testing.B) {
	for _, size := range []int{64, 1480} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var host encap.Host
			host.Set([]netip.Addr{remoteEnd, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("172.56.2.101")})
			d, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, Local: remoteEnd, Remote: localEnd}, &host)
			if err != nil {
				b.Fatal(err)
			}
			outer := outerPacket(b, tcpPacket(size))
			var (
				inner packet.IPv4
				v     stats.Reason
			)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				inner, v = d.Decap(outer)
			}
			if v != stats.Deliver || len(inner) != size {
				b.Fatalf("Decap = %d bytes, %v", len(inner), v)
			}
		})
	}
}

func BenchmarkUnfinished(b *testing.B) {
	for _, bm := range []struct {
		name   string
		inner  packet.IPv4
		merged bool // a superpacket with a partial checksum
	}{
		{"complete/64", tcpPacket(64), false},
		{"complete/1480", tcpPacket(1480), false},
		{"superpacket/65000", partial(tcpPacket(65000)), true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			var h packet.VNetHdr
			b.SetBytes(int64(len(bm.inner)))
			b.ReportAllocs()
			for b.Loop() {
				h = encap.Unfinished(bm.inner, linkMTU)
			}
			if h.NeedsCsum() != bm.merged || (h.GSOSize > 0) != bm.merged {
				b.Fatalf("Unfinished = %+v", h)
			}
		})
	}
}

// BenchmarkSegment cuts a superpacket into segments for an underlay with an MTU of
// 1500.
func BenchmarkSegment(b *testing.B) {
	super := partial(tcpPacket(packet.IPv4MaxLen))
	h := superpacket(segmentSize)
	hdr := packet.IPv4(make([]byte, encap.MaxHdrLen))
	count, length := 0, 0
	b.SetBytes(int64(len(super)))
	b.ReportAllocs()
	for b.Loop() {
		segments, _ := encap.Segment(super, h)
		count, length = 0, 0
		for {
			hdr, payload := segments.Next(hdr)
			if hdr == nil {
				break
			}
			count++
			length += len(payload)
		}
	}
	if want := len(super) - int(h.HdrLen); count != (want+segmentSize-1)/segmentSize || length != want {
		b.Fatalf("%d segments with %d bytes", count, length)
	}
}

// BenchmarkCoalesce merges as many segments as fit a superpacket.
func BenchmarkCoalesce(b *testing.B) {
	const count = 45
	super := partial(tcpPacket(52 + count*segmentSize))
	super.Payload()[13] = packet.TCPAck
	segments, ok := encap.Segment(super, superpacket(segmentSize))
	if !ok {
		b.Fatal("the superpacket is not one")
	}
	var received []packet.IPv4
	for {
		hdr, payload := segments.Next(make(packet.IPv4, encap.MaxHdrLen))
		if hdr == nil {
			break
		}
		received = append(received, append(hdr, payload...))
	}
	c := encap.NewCoalescer(count)
	link := encap.Link{MTU: linkMTU, TCP: true, UDP: true}
	merge := func() int {
		for _, p := range received {
			c.Add(p, &link)
		}
		supers := c.Take()
		supers[0].Split() // undoes what merging changed, for the next time
		return supers[0].Count
	}
	merged := merge() // the first batch makes room for its parts
	b.SetBytes(int64(len(super)))
	b.ReportAllocs()
	for b.Loop() {
		merged = merge()
	}
	if merged != count {
		b.Fatalf("%d segments merged", merged)
	}
}

func BenchmarkSum(b *testing.B) {
	for _, size := range []int{20, 64, 1480, 65535} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			data := make([]byte, size)
			data[0] = 0x12
			var sum uint16
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				sum = packet.Sum(data, 0x0034)
			}
			if sum != 0x1234 {
				b.Fatalf("Sum = %#04x", sum)
			}
		})
	}
}

func BenchmarkFinishChecksum(b *testing.B) {
	for _, size := range []int{64, 1480, 65535} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			inner := partial(tcpPacket(size))
			h := encap.Unfinished(inner, packet.IPv4MaxLen)
			if !h.NeedsCsum() {
				b.Fatal("the packet has no partial checksum")
			}
			done := false
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				done = packet.FinishChecksum(inner, h)
			}
			if !done {
				b.Fatal("the checksum does not lie in the packet")
			}
		})
	}
}

// tcpPacket returns a packet of size bytes with a TCP header of 32 bytes, as most
// have, whose checksum is not partial.
func tcpPacket(size int) packet.IPv4 {
	p := packet.IPv4(make([]byte, size))
	p.InitHeader()
	p.SetTotalLength(size)
	p.SetDF(true)
	p.SetTTL(64)
	p.SetProtocol(packet.ProtoTCP)
	p.SetSource([4]byte{172, 56, 1, 101})
	p.SetDestination([4]byte{172, 56, 2, 101})
	p.UpdateChecksum()
	p.Payload()[12] = 32 / 4 << 4
	return p
}

// segmentSize is the payload of tcpPacket's segments on a link with an MTU of 1480,
// in bytes.
const segmentSize = 1428

// superpacket is the header that a device gives to tcpPacket, of so many bytes
// of payload a segment.
func superpacket(size uint16) packet.VNetHdr {
	return packet.VNetHdr{
		Flags: packet.VNetNeedsCsum, GSOType: packet.VNetGSOTCPv4, HdrLen: 52, GSOSize: size,
		CsumStart: packet.IPv4HdrLen, CsumOffset: packet.TCPCsumOffset,
	}
}

// partial leaves p's TCP checksum to somebody further on.
func partial(p packet.IPv4) packet.IPv4 {
	sum := packet.PseudoHeaderSum(p)
	field := p.Payload()[packet.TCPCsumOffset:]
	field[0], field[1] = byte(sum>>8), byte(sum)
	return p
}

// outerPacket returns the packet around inner, as it arrives.
func outerPacket(tb testing.TB, inner packet.IPv4) packet.IPv4 {
	tb.Helper()
	e, err := encap.NewEncapsulator(encap.Outer{Format: encap.IPIP, Local: localEnd, Remote: remoteEnd, TTL: 64}, encap.NewIDs(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	outer := make([]byte, packet.IPv4HdrLen, packet.IPv4HdrLen+len(inner))
	if v := e.Encap(outer, inner); v != stats.Deliver {
		tb.Fatalf("Encap = %v", v)
	}
	return append(outer, inner...)
}
