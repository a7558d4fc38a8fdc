package oracle_test

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"goipip/internal/packet"
)

// mutator makes packets that are almost right. The same seed makes the same.
type mutator struct {
	rng  *rand.Rand
	tags tags
}

func newMutator(seed uint64) *mutator {
	return &mutator{rng: rand.New(rand.NewPCG(seed, seed))}
}

// inputs returns n mutations of valid packets in one direction.
func (m *mutator) inputs(dir direction, n int) []input { return m.some(dir, false, n) }

// direct returns n mutations that go past the router.
func (m *mutator) direct(n int) []input { return m.some(encap, true, n) }

func (m *mutator) some(dir direction, direct bool, n int) []input {
	list := make([]input, n)
	for i := range list {
		tag := m.tags.next()
		p, changes := m.mutate(m.valid(dir, tag))
		if direct {
			// Nobody can send nothing, and too much is another story.
			p = append(p, 0)[:max(1, min(len(p), cableMTU-packet.IPv4HdrLen))]
		}
		list[i] = input{name: "mutation: " + changes, dir: dir, direct: direct, tag: tag, packets: []packet.IPv4{p}}
	}
	return list
}

// one reports true once in n times.
func (m *mutator) one(n int) bool { return m.rng.IntN(n) == 0 }

// valid returns a packet that every router takes.
func (m *mutator) valid(dir direction, tag uint16) packet.IPv4 {
	if dir == encap {
		return m.innerPacket(ofEncap(tag), cableMTU)
	}
	outer := outerHeader(tag)
	outer.tos, outer.ttl = uint8(m.rng.Uint32()), uint8(m.rng.Uint32())
	if m.one(20) {
		outer.options = m.options()
	}
	return outer.build(m.innerPacket(ofDecap(tag), cableMTU-packet.IPv4MaxHdrLen))
}

func (m *mutator) innerPacket(h header, limit int) packet.IPv4 {
	h.tos = uint8(m.rng.Uint32())
	h.ttl = uint8(m.rng.Uint32())
	if m.one(2) {
		h.fragment = df
	}
	if m.one(10) {
		h.options = m.options()
	}
	n := m.rng.IntN(60)
	if m.one(10) {
		n = m.rng.IntN(limit - 2*packet.IPv4MaxHdrLen - 2*packet.IPv4HdrLen)
	}
	switch m.rng.IntN(7) {
	case 0:
		h.protocol = packet.ProtoTCP
		return h.build(tcp(h, n))
	case 1:
		h.protocol = packet.ProtoICMP
		return h.build(echo(h, n))
	case 2:
		h.protocol = packet.ProtoICMP
		about := h
		about.src, about.dst, about.protocol = h.dst, h.src, packet.ProtoUDP
		return h.build(icmpError(uint8(m.rng.IntN(19)), uint8(m.rng.IntN(16)), m.rng.Uint32(), about.build(udp(about, n)), 28+m.rng.IntN(20)))
	case 3:
		h.protocol = packet.ProtoIPIP
		inside := h
		inside.options, inside.protocol = nil, packet.ProtoUDP
		return h.build(inside.build(udp(inside, n)))
	case 4:
		h.protocol = uint8(m.rng.Uint32())
		return h.build(cookies(h.id, n))
	default:
		h.protocol = packet.ProtoUDP
		return h.build(udp(h, n))
	}
}

func (m *mutator) options() []byte { return options[m.rng.IntN(len(options))].bytes }

// mutate changes a packet, mostly in its headers, and often makes the checksums
// right again, so that the change is looked at.
func (m *mutator) mutate(p packet.IPv4) (_ packet.IPv4, changes string) {
	for n := 1 + m.rng.IntN(3); n > 0 && len(p) > 0; n-- {
		var change string
		p, change = m.change(p)
		changes += change + ", "
	}
	list := headers(p)
	for _, h := range slices.Backward(list) { // an inner one is payload of an outer one, which has no sum over it
		if !m.one(8) {
			fixChecksum(h)
		}
	}
	return p, changes + "of " + fmt.Sprint(len(list)) + " headers"
}

// change makes one change.
func (m *mutator) change(p packet.IPv4) (packet.IPv4, string) {
	at := m.place(p)
	switch m.rng.IntN(10) {
	case 0, 1, 2:
		bit := m.rng.IntN(8)
		p[at] ^= 1 << bit
		return p, fmt.Sprintf("bit %d of byte %d", bit, at)
	case 3, 4:
		p[at] = byte(m.rng.Uint32())
		return p, fmt.Sprintf("byte %d", at)
	case 5:
		at &^= 1
		value := interesting[m.rng.IntN(len(interesting))]
		p[at] = byte(value >> 8)
		if at+1 < len(p) {
			p[at+1] = byte(value)
		}
		return p, fmt.Sprintf("bytes %d and on", at)
	case 6:
		list := headers(p)
		if len(list) == 0 {
			return p, "nothing"
		}
		h := list[m.rng.IntN(len(list))]
		a := addr4(specialAddrs[m.rng.IntN(len(specialAddrs))])
		if m.one(2) {
			h.SetSource(a)
		} else {
			h.SetDestination(a)
		}
		return p, "an address"
	case 7:
		n := m.rng.IntN(len(p) + 1)
		return p[:n], fmt.Sprintf("cut to %d", n)
	case 8:
		n := min(m.rng.IntN(64), cableMTU-len(p))
		for range n {
			p = append(p, byte(m.rng.Uint32()))
		}
		return p, fmt.Sprintf("%d bytes more", n)
	default:
		n := 4 * m.rng.IntN(10)
		if at+n > len(p) {
			n = 0
		}
		if m.one(2) {
			return slices.Delete(p, at, at+n), fmt.Sprintf("%d bytes less at %d", n, at)
		}
		if len(p)+n > cableMTU {
			n = 0
		}
		return slices.Insert(p, at, slices.Clone(p[at:min(at+n, len(p))])...), fmt.Sprintf("%d bytes twice at %d", n, at)
	}
}

// place returns a byte to change, most likely one of a header.
func (m *mutator) place(p packet.IPv4) int {
	list := headers(p)
	if len(list) == 0 || m.one(5) {
		return m.rng.IntN(len(p))
	}
	h := list[m.rng.IntN(len(list))]
	return len(p) - len(h) + m.rng.IntN(h.HdrLen())
}

// interesting are values that something might take for a limit.
var interesting = []uint16{0, 1, 0x0f, 0x10, 0x13, 0x14, 0x15, 0x28, 0x45, 0x46, 0x7f, 0x80, 0xff, 0x100, 0x1ff, 0x2000, 0x4000, 0x45ff, 0x7fff, 0x8000, 0xfffe, 0xffff, 1480, 1500}
