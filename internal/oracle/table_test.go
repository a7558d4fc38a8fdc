package oracle_test

import (
	"fmt"
	"slices"

	"goipip/internal/packet"
)

// table collects inputs of one direction.
type table struct {
	tags   *tags
	dir    direction
	direct bool
	inputs []input
}

// table returns what is worth trying in one direction.
func (r *rig) table(dir direction) []input {
	t := table{tags: &r.tags, dir: dir}
	t.inners()
	t.lengths()
	t.lies()
	t.addresses()
	t.nested()
	if dir == decap {
		t.outers()
		t.peers()
	}
	return t.inputs
}

// directTable returns what is worth trying past the router.
func (r *rig) directTable() []input {
	t := table{tags: &r.tags, dir: encap, direct: true}
	t.inners()
	t.lies()
	t.addresses()
	t.nested()
	for _, etherType := range []uint16{0x86dd, 0x0806, 0x8847, 0x0001} {
		t.add("T1", fmt.Sprintf("EtherType %#04x", etherType), func(h header) packet.IPv4 {
			h.version = 6
			return h.build(udp(h, 20))
		})
		t.inputs[len(t.inputs)-1].etherType = etherType
	}
	return slices.DeleteFunc(t.inputs, func(in input) bool { return len(in.packets[0]) == 0 }) // which nobody can send
}

// pathTable returns packets that are, or are not, longer than a path of 1400
// bytes.
func (r *rig) pathTable() []input {
	t := table{tags: &r.tags, dir: encap}
	for _, n := range []int{100, 1379, 1380, 1381, 1384, 1400, 1401, 1480} {
		for _, flags := range []uint16{0, df, mf, df | mf, 100, df | 100} {
			t.add("T7", fmt.Sprintf("inner packet of %d bytes, fragment field %#04x", n, flags), func(h header) packet.IPv4 {
				h.fragment = flags
				return h.build(udp(h, n-packet.IPv4HdrLen-packet.UDPHdrLen))
			})
		}
	}
	for _, flags := range []uint16{0, df} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoICMP} {
			t.add("T7", fmt.Sprintf("inner packet of 1450 bytes, protocol %d, fragment field %#04x", proto, flags), func(h header) packet.IPv4 {
				h.fragment, h.protocol = flags, proto
				if proto == packet.ProtoTCP {
					return h.build(tcp(h, 1410))
				}
				return h.build(echo(h, 1422))
			})
		}
		for _, kind := range []uint8{3, 5, 11, 40} {
			t.add("G7", fmt.Sprintf("inner ICMP error %d of 1450 bytes, fragment field %#04x", kind, flags), func(h header) packet.IPv4 {
				h.fragment, h.protocol = flags, packet.ProtoICMP
				return h.build(icmpError(kind, 0, 0, cookies(h.id, 1422), 1422))
			})
		}
		for _, a := range []string{"224.0.0.5", "239.1.2.3", "255.255.255.255", "240.0.0.1", "0.0.0.1", "8.8.8.8"} {
			t.add("G7", fmt.Sprintf("inner packet of 1450 bytes to %s, fragment field %#04x", a, flags), func(h header) packet.IPv4 {
				h.fragment, h.dst = flags, addr4(a)
				return h.build(udp(h, 1422))
			})
			t.add("G7", fmt.Sprintf("inner packet of 1450 bytes from %s, fragment field %#04x", a, flags), func(h header) packet.IPv4 {
				h.fragment, h.src = flags, addr4(a)
				return h.build(udp(h, 1422))
			})
		}
		for _, o := range options {
			t.add("T12", fmt.Sprintf("inner packet of 1450 bytes with options: %s, fragment field %#04x", o.name, flags), func(h header) packet.IPv4 {
				h.fragment, h.options = flags, o.bytes
				return h.build(udp(h, 1422-len(o.bytes)))
			})
		}
	}
	for tos := range 4 {
		t.add("T12", fmt.Sprintf("inner packet of 1450 bytes, TOS %d", tos), func(h header) packet.IPv4 {
			h.tos = uint8(tos)
			return h.build(udp(h, 1422))
		})
	}
	return t.inputs
}

// add adds the inner packet that build returns for a header with a fresh tag. On
// its way out of the tunnel it has an ordinary outer header, in fragments where it
// has to.
func (t *table) add(rule, name string, build func(h header) packet.IPv4) {
	tag := t.tags.next()
	in := input{name: name, rule: rule, dir: t.dir, direct: t.direct, tag: tag}
	if t.dir == encap {
		in.packets = []packet.IPv4{build(ofEncap(tag))}
	} else {
		in.packets = outerHeader(tag).fragments(build(ofDecap(tag)), cableMTU)
	}
	t.inputs = append(t.inputs, in)
}

// addOuter adds the packet for the tunnel that build returns for an outer header
// and an inner packet.
func (t *table) addOuter(rule, name string, build func(outer header, inner packet.IPv4) packet.IPv4) {
	t.addInside(rule, name, func(h header) packet.IPv4 { return h.build(udp(h, 20)) }, build)
}

// addInside does the same with an inner packet of choice.
func (t *table) addInside(rule, name string, inner func(header) packet.IPv4, build func(outer header, inner packet.IPv4) packet.IPv4) {
	tag := t.tags.next()
	p := build(outerHeader(tag), inner(ofDecap(tag)))
	t.inputs = append(t.inputs, input{name: name, rule: rule, dir: decap, tag: tag, packets: []packet.IPv4{p}})
}

// inners adds inner headers with every value of each field.
func (t *table) inners() {
	for tos := range 256 {
		t.add("T9", fmt.Sprintf("inner TOS %#02x", tos), func(h header) packet.IPv4 {
			h.tos = uint8(tos)
			return h.build(udp(h, 20))
		})
	}
	for ttl := range 256 {
		t.add("T10", fmt.Sprintf("inner TTL %d", ttl), func(h header) packet.IPv4 {
			h.ttl = uint8(ttl)
			return h.build(udp(h, 20))
		})
	}
	for proto := range 256 {
		t.add("T11", fmt.Sprintf("inner protocol %d", proto), func(h header) packet.IPv4 {
			h.protocol = uint8(proto)
			return h.build(cookies(h.id, 40))
		})
	}
	for _, flags := range fragmentFields {
		t.add("T5", fmt.Sprintf("inner fragment field %#04x", flags), func(h header) packet.IPv4 {
			h.fragment = flags
			return h.build(cookies(h.id, 64))
		})
	}
	for _, o := range options {
		t.add("R4", "inner options: "+o.name, func(h header) packet.IPv4 {
			h.options = o.bytes
			return h.build(udp(h, 20))
		})
	}
	for _, make := range []struct {
		name    string
		proto   uint8
		payload func(header, int) []byte
	}{{"TCP", packet.ProtoTCP, tcp}, {"UDP", packet.ProtoUDP, udp}, {"echo", packet.ProtoICMP, echo}} {
		for _, n := range []int{0, 1, 2, 3, 100, 1000, 1001} {
			t.add("R6", fmt.Sprintf("inner %s with %d bytes", make.name, n), func(h header) packet.IPv4 {
				h.protocol = make.proto
				return h.build(make.payload(h, n))
			})
		}
	}
	t.checksums()
}

// fragmentFields are flags and offsets as they stand in a header.
var fragmentFields = []uint16{
	0, df, mf, reserved, df | mf, df | reserved, mf | reserved, df | mf | reserved,
	1, 2, 100, 8180, 8191, mf | 1, mf | 100, mf | 8191, df | 1, df | 100, df | mf | 1, reserved | 1,
}

// checksums adds wrong inner checksums, and right ones of rare values.
func (t *table) checksums() {
	wrong := func(name string, change func(sum uint16) uint16) {
		t.add("R5", "inner checksum "+name, func(h header) packet.IPv4 {
			p := h.build(udp(h, 20))
			setChecksum(p, change(p.Checksum()))
			return p
		})
	}
	wrong("0", func(uint16) uint16 { return 0 })
	wrong("0xffff", func(uint16) uint16 { return 0xffff })
	wrong("one too high", func(sum uint16) uint16 { return sum + 1 })
	wrong("inverted", func(sum uint16) uint16 { return ^sum })
	for bit := range 16 {
		wrong(fmt.Sprintf("with bit %d flipped", bit), func(sum uint16) uint16 { return sum ^ 1<<bit })
	}
	// A TOS or TTL that is changed on the way changes the checksum, and 0 and 0xffff are the same.
	for _, tos := range []uint8{0, 1, 2, 3} {
		for _, want := range []uint16{0, 1, 2, 3, 0xfe, 0xff, 0x100, 0x101, 0x102, 0xfeff, 0xff00, 0xfffe, 0xfffd, 0xfffc} {
			t.add("R5", fmt.Sprintf("inner TOS %d, checksum %#04x", tos, want), func(h header) packet.IPv4 {
				h.tos = tos
				return withChecksum(h.build(udp(h, 20)), want)
			})
		}
	}
}

func setChecksum(p packet.IPv4, sum uint16) { p[10], p[11] = byte(sum>>8), byte(sum) }

// withChecksum chooses the ID so that the packet's right checksum is sum.
func withChecksum(p packet.IPv4, sum uint16) packet.IPv4 {
	p.SetID(0)
	p.UpdateChecksum()
	p.SetID(onesComplementSum(p.Checksum(), ^sum))
	p.UpdateChecksum()
	return p
}

func onesComplementSum(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum + sum>>16)
}

// lengths adds a payload of every length that a cable takes, and more out of the
// tunnel.
func (t *table) lengths() {
	for n := range cableMTU - packet.IPv4HdrLen + 1 {
		for _, flags := range []uint16{0, df} {
			t.add("T6", fmt.Sprintf("inner payload of %d bytes, flags %#x", n, flags), func(h header) packet.IPv4 {
				h.fragment, h.protocol = flags, 253 // for experiments, RFC 3692
				return h.build(cookies(h.id, n))
			})
		}
	}
	if t.dir == encap {
		return
	}
	for _, n := range []int{1481, 1500, 2000, 2959, 2960, 2961, 4000, 9000, 20000, 65495} {
		for _, flags := range []uint16{0, df} {
			t.add("R1", fmt.Sprintf("inner payload of %d bytes, flags %#x", n, flags), func(h header) packet.IPv4 {
				h.fragment, h.protocol = flags, 253
				return h.build(cookies(h.id, n))
			})
		}
	}
}

// lies adds inner packets whose headers do not fit them.
func (t *table) lies() {
	for length := range 120 {
		t.add("R4", fmt.Sprintf("inner of 48 bytes claims %d", length), func(h header) packet.IPv4 {
			h.length = length | claimZeroLength
			return h.build(udp(h, 20))
		})
	}
	for _, length := range []int{1479, 1480, 1481, 1500, 0x7fff, 0x8000, 0xfffe, 0xffff} {
		t.add("R4", fmt.Sprintf("inner of 48 bytes claims %d", length), func(h header) packet.IPv4 {
			h.length = length
			return h.build(udp(h, 20))
		})
	}
	for ihl := range 16 {
		t.add("R4", fmt.Sprintf("inner IHL %d", ihl), func(h header) packet.IPv4 {
			h.ihl = uint8(ihl) | claimZero
			return h.build(cookies(h.id, 64))
		})
	}
	for version := range 16 {
		t.add("R4", fmt.Sprintf("inner version %d", version), func(h header) packet.IPv4 {
			h.version = uint8(version) | claimZero
			return h.build(udp(h, 20))
		})
	}
	for n := range 69 {
		t.add("R4", fmt.Sprintf("inner cut to %d bytes", n), func(h header) packet.IPv4 {
			h.options = make([]byte, 20)
			return h.build(udp(h, 20))[:n]
		})
	}
	for _, n := range []int{1, 2, 3, 4, 5, 26, 100} {
		t.add("R4", fmt.Sprintf("inner with %d bytes of padding", n), func(h header) packet.IPv4 {
			return append(h.build(udp(h, 20)), cookies(h.id, n)...)
		})
	}
}

// specialAddrs are addresses that nobody should have, and some of the router and
// around it.
var specialAddrs = []string{
	"0.0.0.0", "0.0.0.1", "0.255.255.255", "127.0.0.0", "127.0.0.1", "127.255.255.255",
	"224.0.0.0", "224.0.0.1", "224.0.0.5", "224.1.2.3", "239.255.255.255",
	"240.0.0.0", "240.0.0.1", "255.255.255.254", "255.255.255.255",
	"10.1.0.1", "10.1.0.0", "10.1.0.255", "10.1.255.255", "10.2.0.0", "10.2.255.255", "10.3.0.1", "169.254.1.1", "8.8.8.8",
	localAddr.String(), gatewayAddr.String(), remoteAddr.String(), tunnelAddr.String(), "172.56.2.101",
	"192.168.6.0", "192.168.6.255", "192.168.8.0", "192.168.8.3",
}

// addresses adds packets with special inner addresses.
func (t *table) addresses() {
	for _, a := range specialAddrs {
		t.add("G2", "inner source "+a, func(h header) packet.IPv4 {
			h.src = addr4(a)
			return h.build(udp(h, 20))
		})
		t.add("G2", "inner destination "+a, func(h header) packet.IPv4 {
			h.dst = addr4(a)
			return h.build(udp(h, 20))
		})
		t.add("G2", "inner source and destination "+a, func(h header) packet.IPv4 {
			h.src, h.dst = addr4(a), addr4(a)
			return h.build(udp(h, 20))
		})
	}
}

// nested adds inner packets that are ipip packets themselves.
func (t *table) nested() {
	l, r := localAddr.As4(), remoteAddr.As4()
	for _, c := range []struct {
		name     string
		src, dst func(h header) [4]byte
	}{
		{"tagged", func(h header) [4]byte { return h.src }, func(h header) [4]byte { return h.dst }},
		{"of the tunnel", func(header) [4]byte { return l }, func(header) [4]byte { return r }},
		{"for the tunnel", func(header) [4]byte { return r }, func(header) [4]byte { return l }},
		{"to the far end", func(h header) [4]byte { return h.src }, func(header) [4]byte { return r }},
		{"to the near end", func(h header) [4]byte { return h.src }, func(header) [4]byte { return l }},
		{"from the far end", func(header) [4]byte { return r }, func(h header) [4]byte { return h.dst }},
		{"from the near end", func(header) [4]byte { return l }, func(h header) [4]byte { return h.dst }},
	} {
		for _, proto := range []uint8{packet.ProtoIPIP, packet.ProtoUDP} {
			t.add("G4", fmt.Sprintf("inner packet %s, protocol %d, with a packet in it", c.name, proto), func(h header) packet.IPv4 {
				innermost := h.build(udp(h, 20))
				h.src, h.dst, h.protocol = c.src(h), c.dst(h), proto
				return h.build(innermost)
			})
		}
	}
}
