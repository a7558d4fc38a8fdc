package engine

import (
	"bytes"
	"slices"
	"sync"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

func tapped() (*Tunnel, *outPort, *inPort) {
	e := &Engine{tunnels: map[*Tunnel]struct{}{}}
	t := &Tunnel{engine: e}
	e.tunnels[t] = struct{}{}
	return t, &outPort{tunnel: t}, &inPort{tunnel: t}
}

// endTaps is what Close does about Taps.
func (t *Tunnel) endTaps() {
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	delete(t.engine.tunnels, t)
	t.closeTaps()
}

// A Tap gets copies of what is dropped, and each Tap the same.
func TestTap(t *testing.T) {
	tunnel, out, in := tapped()
	in.drop(stats.Martian, 20, []byte("before"))
	a, b := tunnel.Tap(), tunnel.Tap()
	one, header := []byte("packet"), []byte("header")
	in.drop(stats.TTLExpired, 20, one)
	out.drop(stats.Congested, 3, header, one)
	out.drop(stats.TooBig, 0, make([]byte, tapSnapLen-2), one)
	copy(one, "------") // it belongs to the loop
	b.Close()
	b.Close()
	in.drop(stats.BadECN, 20, one)
	if out.count.Total() != 2 || in.count.Total() != 3 {
		t.Errorf("counted %d and %d packets", out.count.Total(), in.count.Total())
	}
	for i, tap := range []*Tap{a, b} {
		var got []Dropped
		for n := range 4 - i {
			d, ok := tap.Next()
			if !ok {
				t.Fatalf("the end after %d packets", n)
			}
			c := *d
			c.Packet = bytes.Clone(d.Packet)
			got = append(got, c)
			tap.Free(d)
		}
		for n, want := range []Dropped{
			{Reason: stats.TTLExpired, Outer: 20, Length: 6, Packet: []byte("packet")},
			{Sent: true, Reason: stats.Congested, Outer: 3, Length: 12, Packet: []byte("headerpacket")},
			{Sent: true, Reason: stats.TooBig, Length: tapSnapLen + 4, Packet: append(make([]byte, tapSnapLen-2), "pa"...)},
			{Reason: stats.BadECN, Outer: 20, Length: 6, Packet: []byte("------")},
		}[:len(got)] {
			is := got[n]
			if is.Sent != want.Sent || is.Reason != want.Reason || is.Outer != want.Outer || is.Length != want.Length ||
				!bytes.Equal(is.Packet, want.Packet) || is.Time.IsZero() {
				t.Errorf("packet %d: %+v, want %+v", n, is, want)
			}
		}
	}
	if _, ok := b.Next(); ok {
		t.Error("a closed Tap goes on")
	}
	in.drop(stats.BadECN, 20, one)
	tunnel.endTaps()
	if _, ok := a.Next(); !ok {
		t.Error("the end of the tunnel loses a packet")
	}
	if _, ok := a.Next(); ok {
		t.Error("a Tap outlives its tunnel")
	}
	a.Close()
	if tunnel.taps.Load() != nil {
		t.Error("loops still see a Tap")
	}
	late := tunnel.Tap()
	if _, ok := late.Next(); ok {
		t.Error("a Tap of a tunnel that is gone does not end")
	}
	late.Close()
}

// Packets that were merged and are dropped then are captured one by one, as they were received.
func TestTap_Merged(t *testing.T) {
	tunnel, _, in := tapped()
	tap := tunnel.Tap()
	coalescer, link := encap.NewCoalescer(4), encap.Link{UDP: true, MTU: 1480}
	var want [][]byte
	for i := range 3 {
		p := make(packet.IPv4, packet.IPv4HdrLen+packet.UDPHdrLen+100)
		p.InitHeader()
		p.SetTotalLength(len(p))
		p.SetID(uint16(i))
		p.SetTTL(64)
		p.SetProtocol(packet.ProtoUDP)
		p.UpdateChecksum()
		udp := packet.UDP(p.Payload())
		udp.SetLength(len(udp))
		udp.SetChecksum(packet.PseudoHeaderSum(p))
		udp.SetChecksum(^packet.Sum(udp, 0))
		want = append(want, bytes.Clone(p))
		coalescer.Add(p, &link)
	}
	supers := coalescer.Take()
	if len(supers) != 1 || supers[0].Count != len(want) {
		t.Fatalf("merged into %+v, want one", supers)
	}
	in.dropSuper(stats.LinkDown, &supers[0])
	tap.Close()
	var got [][]byte
	for d, ok := tap.Next(); ok; d, ok = tap.Next() {
		got = append(got, d.Packet)
	}
	if in.count.Total() != 3 || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("counted %d packets, captured\n%x\nwant\n%x", in.count.Total(), got, want)
	}
}

// Loops do not wait for a reader: what finds no room is counted.
func TestTap_Lost(t *testing.T) {
	tunnel, _, in := tapped()
	tap := tunnel.Tap()
	const packets = 10 * tapRoom
	var loops sync.WaitGroup
	for range 4 {
		loops.Go(func() {
			for range packets / 4 {
				in.drop(stats.Martian, 20, []byte("packet"))
			}
		})
	}
	loops.Wait()
	if lost := tap.Lost(); lost != packets-tapRoom {
		t.Errorf("%d of %d packets are lost, with room for %d", lost, packets, tapRoom)
	}
	tap.Close()
	n := 0
	for d, ok := tap.Next(); ok; d, ok = tap.Next() {
		n++
		tap.Free(d)
	}
	if n != tapRoom {
		t.Errorf("%d packets are left, want %d", n, tapRoom)
	}
}

// To drop a packet allocates nothing, whether somebody captures or not.
func TestTap_Allocs(t *testing.T) {
	tunnel, out, in := tapped()
	packet := make([]byte, 1500)
	drop := func() {
		out.drop(stats.TooBig, 20, packet[:40], packet[40:])
		in.drop(stats.Martian, 20, packet)
	}
	if allocs := testing.AllocsPerRun(100, drop); allocs != 0 {
		t.Errorf("%v allocations while nobody captures", allocs)
	}
	tap, other := tunnel.Tap(), tunnel.Tap()
	defer tap.Close()
	defer other.Close()
	read := 0
	if allocs := testing.AllocsPerRun(100, func() {
		drop()
		for range 2 {
			if d, ok := tap.Next(); ok && len(d.Packet) == len(packet) {
				read++
				tap.Free(d)
			}
		}
	}); allocs != 0 {
		t.Errorf("%v allocations while somebody captures", allocs)
	}
	if read < 200 {
		t.Errorf("read %d packets", read)
	}
}

func BenchmarkDrop(b *testing.B) {
	packet := make([]byte, 1500)
	for name, taps := range map[string]int{"captures=0": 0, "captures=1": 1} {
		b.Run(name, func(b *testing.B) {
			tunnel, _, in := tapped()
			for range taps {
				tap := tunnel.Tap()
				defer tap.Close()
				go func() {
					for d, ok := tap.Next(); ok; d, ok = tap.Next() {
						tap.Free(d)
					}
				}()
			}
			b.ReportAllocs()
			for b.Loop() {
				in.drop(stats.Martian, 20, packet)
			}
		})
	}
}
