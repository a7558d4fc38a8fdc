package tunnel_test

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// outerPackets returns the ipip packets from s that a router's capture has seen
// come in.
func (s *site) outerPackets(c *netlab.Capture) (packets []packet.IPv4) {
	for _, p := range c.Packets() {
		ip := packet.IPv4(p.Data)
		if !p.Outgoing && ip.Protocol() == unix.IPPROTO_IPIP && ip.Source() == s.outer.As4() {
			packets = append(packets, ip)
		}
	}
	return packets
}

// datagrams sorts packets, whole or fragments, by their identification, and fails
// the test unless all of them are sound, no longer than mtu, and make up a whole
// packet, which it returns without header.
func datagrams(t testing.TB, mtu int, packets []packet.IPv4) map[uint16][]byte {
	t.Helper()
	found := map[uint16][]byte{}
	fragments := map[uint16][]packet.IPv4{}
	for _, p := range packets {
		hdr, err := ipv4.ParseHeader(p)
		must(t, err)
		if len(p) != hdr.TotalLen || packet.Sum(p[:hdr.Len], 0) != 0xffff {
			t.Fatalf("% x…: a length or a checksum is wrong", p[:20])
		}
		if len(p) > mtu {
			t.Errorf("%d bytes, mtu %d: %v", len(p), mtu, hdr)
		}
		if p.MF() && (hdr.TotalLen-hdr.Len)%8 != 0 {
			t.Errorf("not the last fragment, and no multiple of 8: %v", hdr)
		}
		if p.DF() && p.IsFragment() {
			t.Errorf("a fragment with DF: %v", hdr)
		}
		fragments[p.ID()] = append(fragments[p.ID()], p)
	}
	for id, parts := range fragments {
		slices.SortFunc(parts, func(a, b packet.IPv4) int { return a.FragmentOffset() - b.FragmentOffset() })
		for i, p := range parts {
			if p.FragmentOffset() != len(found[id]) || p.MF() != (i < len(parts)-1) {
				t.Fatalf("ID %d, fragment %d of %d: offset %d behind %d bytes, MF %v", id, i, len(parts), p.FragmentOffset(), len(found[id]), p.MF())
			}
			if p.TTL() != parts[0].TTL() || p.TOS() != parts[0].TOS() || p.HdrLen() != parts[0].HdrLen() {
				t.Errorf("ID %d: fragments differ: % x, % x", id, parts[0][:20], p[:20])
			}
			found[id] = append(found[id], p.Payload()...)
		}
	}
	return found
}

// Without DF, the outer packet is what is cut, by the MTU of the path where it is
// known, and of the first link where it is not.
func TestT12_OuterFragments(t *testing.T) {
	t.Parallel()
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload %v", offload), func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(c *tunnel.Config) {
				c.NoPMTUDisc, c.MTU, c.NoOffload = true, tunnel.MaxMTU, !offload
			})
			wire := capture(t, n.r1, "a0")
			want := map[int]bool{}
			// Around where one outer packet becomes two, and two become three.
			for _, size := range []int{1451, 1452, 1453, 1460, 1461, 2931, 2932, 2933, 20000, 65487} {
				ping(t, n.a, n.b, netlab.PingOptions{Size: size, TOS: size & 0xfc})
				want[28+size] = true
			}
			n.settle(t, wire)
			for id, inner := range datagrams(t, 1500, n.a.outerPackets(wire)) {
				ip := packet.IPv4(inner)
				if !ip.Valid() || len(inner) != ip.TotalLength() || ip.IsFragment() || !want[len(inner)] && len(inner) > 300 {
					t.Errorf("ID %d: in the outer packet are %d bytes: % x…", id, len(inner), inner[:20])
				}
				delete(want, len(inner))
			}
			if len(want) > 0 {
				t.Errorf("no inner packets of %v bytes on the wire", slices.Sorted(maps.Keys(want)))
			}
			wire.Close()

			n.shrink(t, 1400) // the router cuts the fragments again
			for _, end := range n.directions() {
				p := newProber(t, end[0], end[1])
				p.fragments(t)
				for _, size := range []int{1480, 1481, 9000, tunnel.MaxMTU, tunnel.MaxMTU + 1, 65535} {
					p.exchange(t, size)
				}
			}
			n.balance(t)
			n.a.drops(t)
			n.b.drops(t)

			// DF inside is DF outside.
			p := newProber(t, n.a, n.b)
			p.learns(t, 1480, 1380)
			p.arrives(t, 1380)
			p.fragments(t)
			p.exchange(t, 20000)
		})
	}
}

// With DF outside and none inside, the inner packet is what is cut, as by a router
// in front of the tunnel.
func TestT12_InnerFragments(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{0, 9000} { // of the link: the latter cuts even where the path did not shrink
		t.Run(fmt.Sprintf("mtu %d", mtu), func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(c *tunnel.Config) { c.MTU = mtu })
			for _, path := range []int{1500, 1400, 600} {
				n.shrink(t, path)
				// Whoever meets the path first loses a packet (T12).
				labtest.WaitFor(t, "a ping over the shorter path", func() bool {
					r, err := n.a.host.Ping(labtest.Context(t), n.b.inner, netlab.PingOptions{Size: 1452, Timeout: unanswered})
					must(t, err)
					return r.Received > 0
				})
				wire := capture(t, n.r1, "a0")
				for _, size := range []int{1452, 5000, 20000, 65000} {
					if r := ping(t, n.a, n.b, netlab.PingOptions{Size: size, Count: 5}); r.Received != 5 {
						t.Errorf("path %d, size %d: %v", path, size, r)
					}
				}
				n.settle(t, wire)
				var inner []packet.IPv4
				for _, outer := range n.a.outerPackets(wire) {
					if len(outer) > path || !outer.DF() || outer.IsFragment() || packet.Sum(outer[:20], 0) != 0xffff {
						t.Errorf("path %d: outer packet % x…", path, outer[:20])
					}
					inner = append(inner, outer.Payload())
				}
				if got := len(datagrams(t, path-20, inner)); got != 21 { // the mark is the last
					t.Errorf("path %d: %d inner packets, want 21", path, got)
				}
				wire.Close()
			}
			n.balance(t)
		})
	}
}

// The inner options that are not for all fragments stay in the first, and what
// comes in a fragment is cut again.
func TestT12_InnerOptions(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.MTU = 4000 })
	wire := capture(t, n.r1, "a0")
	p := packet.IPv4(make([]byte, 2028))
	copy(p, echoReply(n.a.inner, n.b.inner, 2028))
	p[0] = 4<<4 | 28/4
	copy(p[20:], []byte{0x44, 4, 5, 0, 0x94, 4, 0, 0}) // timestamp, not copied; router alert, copied
	p.SetFragment(0, true)
	later := packet.IPv4(bytes.Clone(p))
	later.SetFragment(2000, false)
	inject(t, n.a.host, "tun01", p, later)
	_, err := wire.Wait(labtest.Context(t), func(c netlab.Captured) bool { return packet.IPv4(c.Data[20:]).FragmentOffset() > 3000 })
	must(t, err)
	type fragment struct {
		offset, length int
		mf             bool
		options        [8]byte
	}
	whole, cut := [8]byte{0x44, 4, 5, 0, 0x94, 4, 0, 0}, [8]byte{1, 1, 1, 1, 0x94, 4, 0, 0}
	want := []fragment{
		{0, 1476, true, whole}, {1448, 28 + 552, true, cut},
		{2000, 1476, true, whole}, {3448, 28 + 552, false, cut},
	}
	var got []fragment
	for _, outer := range n.a.outerPackets(wire) {
		inner := packet.IPv4(outer.Payload())
		if inner.HdrLen() != 28 {
			continue
		}
		if packet.Sum(inner[:28], 0) != 0xffff {
			t.Errorf("inner header % x", inner[:28])
		}
		got = append(got, fragment{inner.FragmentOffset(), len(inner), inner.MF(), [8]byte(inner[20:28])})
	}
	if !slices.Equal(got, want) {
		t.Errorf("inner fragments\n%+v, want\n%+v", got, want)
	}
	n.balance(t)
	n.a.drops(t)
}

// A path can be too short for the smallest fragment: an administrator's route says
// so, or the inner header is as long as the room. Such packets are lost, and no
// others.
func TestT12_NoRoomForFragments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ mtu, hdrLen int }{
		{44, 20}, {47, 20}, {80, 60}, // 0 to 7 bytes of payload for each fragment
		{20, 20}, {39, 20}, {79, 60}, // less than a header
	} {
		t.Run(fmt.Sprintf("mtu %d, header of %d", c.mtu, c.hdrLen), func(t *testing.T) {
			n := across(t)
			n.routeMTU(t, c.mtu, false)
			n.a.start(t, config(n.a, n.b))
			wire := capture(t, n.r1, "a0")
			p := echoReply(stranger, n.b.inner, 200)
			p[0] = 4<<4 | byte(c.hdrLen/4)
			inject(t, n.a.host, "tun01", p)
			const storm = 100
			labtest.WaitFor(t, "the packet to be counted, or a storm", func() bool {
				return n.a.tunnel.Stats().TX.Drops[stats.TooBig] > 0 || len(n.a.outerPackets(wire)) > storm
			})
			if got := len(n.a.outerPackets(wire)); got > 1 {
				t.Fatalf("more than %d packets are on the wire for one in the link", storm)
			}
			n.a.balance(t)
			if got := n.a.tunnel.Stats().TX; total(got) != 1 {
				t.Errorf("counted %+v, want one too big", got)
			}
		})
		if t.Failed() {
			return // worse is to come
		}
	}
}

// A packet of which the device refuses several fragments, and not the first ones,
// is one packet that was dropped.
func TestT12_RefusedFragments(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, func(c *tunnel.Config) { c.NoPMTUDisc, c.MTU = true, tunnel.MaxMTU })
	eth0, err := n.a.host.Netlink().LinkByName("eth0")
	must(t, err)
	const rate = 1000 // bytes a second
	// Room for two fragments, and a rate that makes no more of it in a test's time.
	must(t, n.a.host.Netlink().QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, 4000), Limit: 3100,
	}))
	before := n.a.tunnel.Stats().TX
	const packets = 10
	for _, size := range []int{20_000, 60_000} { // fragments of one batch, and of several
		for range packets {
			inject(t, n.a.host, "tun01", echoReply(n.a.inner, n.b.inner, size))
		}
	}
	n.a.balance(t)
	labtest.WaitFor(t, "the packets to be counted", func() bool { return total(n.a.tunnel.Stats().TX) >= total(before)+2*packets })
	n.a.balance(t)
	after := n.a.tunnel.Stats().TX
	if got := after.Drops[stats.Congested]; got != 2*packets || after.Packets != before.Packets || after.Bytes != before.Bytes {
		t.Errorf("counted %+v for %d packets more, none of which can have passed; before %+v", after, 2*packets, before)
	}
}

// Fragments allocate nothing, neither outer nor inner ones.
func TestT12_HeapStaysFlat(t *testing.T) {
	for name, change := range map[string]func(*tunnel.Config){
		"outer": func(c *tunnel.Config) { c.MTU, c.NoPMTUDisc = 9000, true },
		"inner": func(c *tunnel.Config) { c.MTU = 9000 },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tunnels(t, change)
			p := newProber(t, a, b)
			p.fragments(t)
			datagram, buf := make([]byte, 5000), make([]byte, 9000)
			must(t, p.in.SetReadDeadline(time.Now().Add(time.Minute)))
			exchange := func(n int) {
				for range n {
					_, err := p.out.Write(datagram)
					must(t, err)
					_, err = p.in.Read(buf)
					must(t, err)
				}
			}
			const packets = 3000 // with two busy loops beside it, one takes 6 ms
			exchange(100)
			defer a.tunnel.PauseUnderlay()()
			defer b.tunnel.PauseUnderlay()()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			exchange(packets)
			runtime.ReadMemStats(&after)
			if n := after.Mallocs - before.Mallocs; n > packets/10 {
				t.Errorf("%d allocations for %d packets", n, packets)
			}
			if got := a.tunnel.Stats().TX.Bytes; got < packets*5028 {
				t.Errorf("%d bytes came through the tunnel", got)
			}
		})
	}
}
