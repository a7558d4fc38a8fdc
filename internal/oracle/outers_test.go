package oracle_test

import (
	"fmt"

	"goipip/internal/packet"
)

// outers adds packets for the tunnel that differ in the outer header.
func (t *table) outers() {
	for tos := range 256 {
		for ecn := range 4 {
			t.addInside("R5", fmt.Sprintf("outer TOS %#02x, inner TOS %#02x", tos, ecn), func(h header) packet.IPv4 {
				h.tos = uint8(ecn)
				return h.build(udp(h, 20))
			}, func(outer header, inner packet.IPv4) packet.IPv4 {
				outer.tos = uint8(tos)
				return outer.build(inner)
			})
		}
	}
	for tos := range 256 {
		for ecn := range 4 {
			t.addInside("R5", fmt.Sprintf("inner TOS %#02x, outer TOS %#02x", tos, ecn), func(h header) packet.IPv4 {
				h.tos = uint8(tos)
				return h.build(udp(h, 20))
			}, func(outer header, inner packet.IPv4) packet.IPv4 {
				outer.tos = uint8(ecn)
				return outer.build(inner)
			})
		}
	}
	t.markedChecksums()
	for ttl := range 256 {
		t.addOuter("R2", fmt.Sprintf("outer TTL %d", ttl), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.ttl = uint8(ttl)
			return outer.build(inner)
		})
	}
	for proto := range 256 {
		t.addOuter("R2", fmt.Sprintf("outer protocol %d", proto), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.protocol = uint8(proto)
			return outer.build(inner)
		})
	}
	for _, flags := range fragmentFields {
		t.addOuter("R1", fmt.Sprintf("outer fragment field %#04x", flags), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.fragment = flags
			return outer.build(inner)
		})
	}
	for _, o := range options {
		t.addOuter("R2", "outer options: "+o.name, func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.options = o.bytes
			return outer.build(inner)
		})
	}
	t.outerLies()
	t.outerFragments()
}

// markedChecksums adds packets whose checksum has a rare value before or after an
// ECN mark is written to them.
func (t *table) markedChecksums() {
	for _, ecn := range [][2]uint8{{1, 3}, {2, 3}, {2, 1}, {3, 3}} { // inner, outer
		for sum := range 0x10 {
			for _, base := range []uint16{0, 0xf0, 0xfef8, 0xfff0} {
				want := base + uint16(sum)
				if want == 0xffff {
					continue // no sum has this checksum
				}
				t.addInside("R5", fmt.Sprintf("inner ECN %d, outer ECN %d, inner checksum %#04x", ecn[0], ecn[1], want), func(h header) packet.IPv4 {
					h.tos = ecn[0]
					return withChecksum(h.build(udp(h, 20)), want)
				}, func(outer header, inner packet.IPv4) packet.IPv4 {
					outer.tos = ecn[1]
					return outer.build(inner)
				})
			}
		}
	}
}

// outerLies adds packets whose outer headers do not fit them.
func (t *table) outerLies() {
	for length := range 100 {
		t.addOuter("R2", fmt.Sprintf("outer packet of 68 bytes claims %d", length), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.length = length | claimZeroLength
			return outer.build(inner)
		})
	}
	for ihl := range 16 {
		t.addOuter("R2", fmt.Sprintf("outer IHL %d", ihl), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.ihl = uint8(ihl) | claimZero
			return outer.build(inner)
		})
	}
	for version := range 16 {
		t.addOuter("R2", fmt.Sprintf("outer version %d", version), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.version = uint8(version) | claimZero
			return outer.build(inner)
		})
	}
	for n := range 69 {
		t.addOuter("R4", fmt.Sprintf("outer packet cut to %d bytes", n), func(outer header, inner packet.IPv4) packet.IPv4 {
			return outer.build(inner)[:n]
		})
		if n <= 48 {
			t.addOuter("R4", fmt.Sprintf("outer packet around %d bytes", n), func(outer header, inner packet.IPv4) packet.IPv4 {
				return outer.build(inner[:n])
			})
		}
	}
	for bit := range 16 {
		t.addOuter("R2", fmt.Sprintf("outer checksum with bit %d flipped", bit), func(outer header, inner packet.IPv4) packet.IPv4 {
			p := outer.build(inner)
			setChecksum(p, p.Checksum()^1<<bit)
			return p
		})
	}
}

// peers adds packets between other ends than the tunnel's.
func (t *table) peers() {
	l, r := localAddr.String(), remoteAddr.String()
	for _, pair := range [][2]string{
		{"192.168.8.3", l}, {"192.168.6.2", l}, {"192.168.6.77", l}, {"10.2.7.7", l}, {"10.1.7.7", l}, {"8.8.8.8", l},
		{l, l}, {l, r}, {r, r}, {"10.1.0.1", l}, {"172.56.1.101", l},
		{r, "192.168.6.77"}, {r, "192.168.6.255"}, {r, "192.168.6.0"}, {r, "255.255.255.255"}, {r, "224.0.0.1"}, {r, "224.1.2.3"},
		{r, "10.1.0.1"}, {r, "172.56.1.101"}, {r, "10.1.7.7"}, {r, "10.2.7.7"}, {r, "127.0.0.1"}, {r, "0.0.0.0"},
		{"0.0.0.0", l}, {"127.0.0.1", l}, {"224.0.0.1", l}, {"255.255.255.255", l}, {"240.0.0.1", l}, {"192.168.6.255", l}, {"192.168.8.255", l},
	} {
		t.addOuter("G1", fmt.Sprintf("outer %s to %s", pair[0], pair[1]), func(outer header, inner packet.IPv4) packet.IPv4 {
			outer.src, outer.dst = addr4(pair[0]), addr4(pair[1])
			return outer.build(inner)
		})
	}
}

// outerFragments adds packets in pieces.
func (t *table) outerFragments() {
	for _, mtu := range []int{28, 36, 44, 100, 576, 1000} {
		for _, order := range []string{"in order", "last first", "one missing", "one twice"} {
			tag := t.tags.next()
			h := ofDecap(tag)
			h.protocol = 253
			outer := outerHeader(tag)
			outer.fragment = 0
			pieces := outer.fragments(h.build(cookies(tag, 4*mtu)), mtu)
			switch last := len(pieces) - 1; order {
			case "last first":
				pieces = append([]packet.IPv4{pieces[last]}, pieces[:last]...)
			case "one missing":
				pieces = append(pieces[:last/2:last/2], pieces[last/2+1:]...)
			case "one twice":
				pieces = append(pieces[:last/2+1:last/2+1], pieces[last/2:]...)
			}
			t.inputs = append(t.inputs, input{
				name: fmt.Sprintf("outer packet in %d pieces of %d bytes, %s", len(pieces), mtu, order),
				rule: "R1", dir: decap, tag: tag, packets: pieces,
			})
		}
	}
}
