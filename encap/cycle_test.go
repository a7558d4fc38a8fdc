package encap_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
)

// superSegments is a superpacket and its segments.
type superSegments struct {
	super    packet.IPv4
	hdr      packet.VNetHdr
	segments []packet.IPv4
}

// randomSupers returns a superpacket for each flow, of up to most segments, that can
// be merged again.
func randomSupers(t *testing.T, r *rand.Rand, flows, most int) []superSegments {
	t.Helper()
	var all []superSegments
	for i := range flows {
		size := []int{1, 2, 7, 536, 1361, 1428}[r.IntN(6)]
		n := 2 + r.IntN(most-1)
		data := randomBytes(r, min(size*(n-1)+1+r.IntN(size), packet.IPv4MaxLen-100))
		ip := ipv4{
			src: fmt.Sprintf("10.0.%d.1", i/16), dst: unicast(r), ttl: 1 + r.IntN(255),
			tos: uint8(r.Uint32())&^3 | uint8(r.IntN(3)), id: uint16(r.Uint32()), df: r.IntN(2) == 0,
		}
		var p packet.IPv4
		if r.IntN(2) == 0 {
			p = udpDatagram{ip: ip, port: uint16(i), data: data}.build(partial)
		} else {
			s := tcpSegment{ip: ip, port: uint16(i), seq: r.Uint32(), ack: r.Uint32(), window: uint16(r.Uint32()), data: data}
			s.options = [][]byte{nil, timestamps, fortyBytes}[r.IntN(3)]
			s.flags = []uint8{0, packet.TCPPsh}[r.IntN(2)]
			p = s.build(partial)
		}
		h := superHdr(p, size)
		all = append(all, superSegments{p, h, cut(t, p, h)})
	}
	return all
}

// interleaved returns the segments of all, those of each flow in order and the flows
// mixed at random.
func interleaved(r *rand.Rand, all []superSegments) []packet.IPv4 {
	var turns []int
	for i, s := range all {
		for range s.segments {
			turns = append(turns, i)
		}
	}
	r.Shuffle(len(turns), func(i, k int) { turns[i], turns[k] = turns[k], turns[i] })
	next := make([]int, len(all))
	var packets []packet.IPv4
	for _, i := range turns {
		packets = append(packets, bytes.Clone(all[i].segments[next[i]]))
		next[i]++
	}
	return packets
}

// TCP and UDP superpackets that are segmented, mixed with other flows and merged are
// the same again, bit by bit, virtio-net header included.
func TestSegmentThenCoalesce(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 0))
	const batch = 512
	c := encap.NewCoalescer(batch)
	for range 200 {
		flows := 1 + r.IntN(32)
		all := randomSupers(t, r, flows, min(batch/flows, 45))
		for _, p := range interleaved(r, all) {
			c.Add(p, link)
		}
		supers := c.Take()
		if len(supers) != flows {
			t.Fatalf("%d superpackets of %d flows come out as %d", flows, flows, len(supers))
		}
		merged := map[string]*encap.Super{}
		for i := range supers {
			merged[flowOf(bytes.Join(supers[i].Parts, nil))] = &supers[i]
		}
		for _, want := range all {
			s := merged[flowOf(want.super)]
			if s.Count != len(want.segments) || s.VNet != want.hdr {
				t.Fatalf("%d segments with %+v come out as %d with %+v", len(want.segments), want.hdr, s.Count, s.VNet)
			}
			if got := bytes.Join(s.Parts, nil); !bytes.Equal(got, want.super) {
				t.Fatalf("% x… comes out as % x…", want.super[:min(80, len(want.super))], got[:min(80, len(got))])
			}
		}
	}
}

// The kernel segments a merged superpacket into the packets that were received.
func TestCoalesce_TheKernelCuts(t *testing.T) {
	cable := newCable(t)
	r := rand.New(rand.NewPCG(8, 0))
	const batch = 512
	c := encap.NewCoalescer(batch)
	for range 30 {
		flows := 1 + r.IntN(12)
		all := randomSupers(t, r, flows, 40)
		sent := map[string][]packet.IPv4{}
		for _, p := range interleaved(r, all) {
			sent[flowOf(p)] = append(sent[flowOf(p)], bytes.Clone(p))
			c.Add(p, link)
		}
		supers := c.Take()
		for i := range supers {
			s := &supers[i]
			p := packet.IPv4(bytes.Join(s.Parts, nil))
			want := sent[flowOf(p)]
			got := cable.cuts(t, p, s.VNet, s.Count)
			if len(got) != len(want) {
				t.Fatalf("of %d packets the kernel makes %d", len(want), len(got))
			}
			for k := range want {
				if !bytes.Equal(got[k].Data, want[k]) {
					t.Fatalf("packet %d of %d was % x, the kernel makes % x", k, len(want), want[k][:40], got[k].Data[:40])
				}
			}
		}
	}
}
