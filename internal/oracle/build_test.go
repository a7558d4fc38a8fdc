package oracle_test

import (
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"goipip/internal/netlab"
	"goipip/internal/packet"
)

// direction is the way of a packet through a router.
type direction int

const (
	encap direction = iota // from the inner side into the tunnel
	decap                  // from the underlay out of the tunnel
)

func (d direction) String() string { return [...]string{"encap", "decap"}[d] }

// input is one thing to send to both devices. Its packets belong together.
type input struct {
	name      string
	rule      string // the rule that it is about
	dir       direction
	direct    bool // past the router, see rig.direct
	packets   []packet.IPv4
	etherType uint16 // 0 is IPv4
	tag       uint16 // in its addresses and its payload
}

// inner returns the packet in the tunnel, as it was sent; of a decap input, what
// is behind the outer header that the first packet seems to have.
func (in *input) inner() packet.IPv4 {
	p := in.packets[0]
	if in.dir == encap {
		return p
	}
	if len(p) < packet.IPv4HdrLen || p.HdrLen() > len(p) {
		return nil
	}
	return p[p.HdrLen():]
}

// header describes an IPv4 header. What is zero gets what is right for it: the
// version, IHL, total length and checksum. Others can be set to lie.
type header struct {
	tos      uint8
	id       uint16
	fragment uint16 // flags and offset, as in the header
	ttl      uint8
	protocol uint8
	src, dst [4]byte
	options  []byte // a multiple of 4 bytes

	version, ihl uint8
	length       int
}

// Flags within header.fragment.
const (
	reserved = 0x8000
	df       = 0x4000
	mf       = 0x2000
)

// build returns a packet with this header. Its checksum is right for the header
// length that it claims.
func (h header) build(payload []byte) packet.IPv4 {
	p := make(packet.IPv4, packet.IPv4HdrLen+len(h.options)+len(payload))
	copy(p[packet.IPv4HdrLen:], h.options)
	copy(p[packet.IPv4HdrLen+len(h.options):], payload)
	p.InitHeader()
	version, ihl, length := uint8(4), uint8(len(p)-len(payload))/4, len(p)
	if h.version != 0 {
		version = h.version &^ claimZero
	}
	if h.ihl != 0 {
		ihl = h.ihl &^ claimZero
	}
	if h.length != 0 {
		length = h.length &^ claimZeroLength
	}
	p[0] = version<<4 | ihl
	p.SetTOS(h.tos)
	p.SetTotalLength(length)
	p.SetID(h.id)
	p[6], p[7] = byte(h.fragment>>8), byte(h.fragment)
	p.SetTTL(h.ttl)
	p.SetProtocol(h.protocol)
	p.SetSource(h.src)
	p.SetDestination(h.dst)
	fixChecksum(p)
	return p
}

// cableMTU is that of all cables, in bytes.
const cableMTU = 1500

// fragments returns a packet with this header in as many pieces as the MTU asks
// for; with DF too.
func (h header) fragments(payload []byte, mtu int) []packet.IPv4 {
	var list []packet.IPv4
	room := mtu - packet.IPv4HdrLen - len(h.options)
	for offset := 0; ; {
		piece := h
		n := len(payload) - offset
		if n > room {
			n = room &^ 7
			piece.fragment |= mf
		}
		piece.fragment += uint16(offset / 8)
		list = append(list, piece.build(payload[offset:offset+n]))
		if offset += n; offset == len(payload) {
			return list
		}
	}
}

// Bits that make a claim of zero different from no claim.
const (
	claimZero       = 0x80
	claimZeroLength = 1 << 16
)

// fixChecksum makes the header checksum right, where there is a header.
func fixChecksum(p packet.IPv4) {
	if len(p) >= packet.IPv4HdrLen && p.HdrLen() <= len(p) && p.HdrLen() >= packet.IPv4HdrLen {
		p.UpdateChecksum()
	}
}

// tags numbers packets, so that what comes out can be told to belong to one.
type tags struct {
	last     uint16
	sentries uint16
}

// Tags up to lastSentinelTag are those of sentinels. They are the low two bytes of
// addresses below 10.1 and 10.2, and none of a subnet with an end of a cable.
const (
	firstSentinelTag = 0x0100
	lastSentinelTag  = 0x01ff
)

func isSentinel(tag uint16) bool { return tag >= firstSentinelTag && tag <= lastSentinelTag }

func (t *tags) next() uint16 {
	if t.last++; t.last <= lastSentinelTag {
		t.last = lastSentinelTag + 1
	}
	return t.last
}

// near and far are the addresses with a tag on either side of the tunnel.
func near(tag uint16) [4]byte { return [4]byte{10, 1, byte(tag >> 8), byte(tag)} }
func far(tag uint16) [4]byte  { return [4]byte{10, 2, byte(tag >> 8), byte(tag)} }

// ofEncap and ofDecap are headers of inner packets on their way.
func ofEncap(tag uint16) header {
	return header{id: tag, ttl: 64, protocol: packet.ProtoUDP, src: near(tag), dst: far(tag)}
}

func ofDecap(tag uint16) header {
	return header{id: tag, ttl: 64, protocol: packet.ProtoUDP, src: far(tag), dst: near(tag)}
}

// outerHeader is that of a packet which arrives for the tunnel.
func outerHeader(tag uint16) header {
	return header{id: tag, ttl: 64, fragment: df, protocol: packet.ProtoIPIP, src: remoteAddr.As4(), dst: localAddr.As4()}
}

// sentinel is a packet that comes out last.
type sentinel struct {
	input
	out side
}

// sentinels returns what ends a window: a packet into the tunnel, and one out of
// it whose TTL ends there, so that an ICMP message goes back. They have the lowest
// priority, so that no queue lets them overtake (rt_tos2priority in
// include/net/route.h).
func (t *tags) sentinels() []sentinel {
	in, out := t.sentinel(encap), t.sentinel(decap)
	out.packets[0] = arriving(out.tag, 1)
	out.out = under
	return []sentinel{in, out}
}

// arrivals returns what ends a window without going into the tunnel: a packet out
// of it.
func (t *tags) arrivals() []sentinel { return []sentinel{t.sentinel(decap)} }

func (t *tags) sentinel(dir direction) sentinel {
	t.sentries = (t.sentries + 1) & (lastSentinelTag - firstSentinelTag)
	tag := firstSentinelTag + t.sentries
	s := sentinel{input: input{name: "sentinel", dir: dir, tag: tag}, out: inner}
	if dir == decap {
		s.packets = []packet.IPv4{arriving(tag, 64)}
		return s
	}
	h := ofEncap(tag)
	h.tos, h.options = bulk, noOptions
	s.packets = []packet.IPv4{h.build(udp(h, 8))}
	s.out = under
	return s
}

// bulk is a TOS of low priority.
const bulk = 0x08

// noOptions keep a packet off the fast path, so that it comes after those that were before it on
// either way.
var noOptions = []byte{optNop, optNop, optNop, optEnd}

// arriving returns a packet out of the tunnel with this inner TTL.
func arriving(tag uint16, ttl uint8) packet.IPv4 {
	h, outer := ofDecap(tag), outerHeader(tag)
	h.tos, h.ttl, h.options, outer.tos = bulk, ttl, noOptions, bulk
	return outer.build(h.build(udp(h, 8)))
}

// cookie begins a word of payload; the packet's tag is the rest.
const cookie = 0xc0de

// cookies returns n bytes that say to which tag they belong.
func cookies(tag uint16, n int) []byte {
	b := make([]byte, n)
	word := [4]byte{cookie >> 8, cookie & 0xff, byte(tag >> 8), byte(tag)}
	for i := range b {
		b[i] = word[i%4]
	}
	return b
}

// udp, tcp and echo return payloads for a header, with n bytes of data and a
// right checksum. The header's ID is its tag.
func udp(h header, n int) []byte {
	l := &layers.UDP{SrcPort: 40000, DstPort: 33333}
	return transport(h, n, l, l.SetNetworkLayerForChecksum)
}

func tcp(h header, n int) []byte {
	l := &layers.TCP{SrcPort: 40000, DstPort: 33333, Seq: 1, Ack: 1, ACK: true, PSH: n > 0, Window: 1000}
	return transport(h, n, l, l.SetNetworkLayerForChecksum)
}

func echo(h header, n int) []byte {
	l := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: h.id, Seq: 1}
	return transport(h, n, l, nil)
}

func transport(h header, n int, l gopacket.SerializableLayer, over func(gopacket.NetworkLayer) error) []byte {
	if over != nil {
		ip := &layers.IPv4{SrcIP: h.src[:], DstIP: h.dst[:], Protocol: layers.IPProtocol(h.protocol)}
		if err := over(ip); err != nil {
			panic(err) // IPv4 is fine for all of them
		}
	}
	b := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, opts, l, gopacket.Payload(cookies(h.id, n))); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// icmpError returns an ICMP message about a packet, of which it quotes n bytes.
func icmpError(kind, code uint8, word uint32, quoted packet.IPv4, n int) []byte {
	l := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Id: uint16(word >> 16), Seq: uint16(word)}
	b := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, opts, l, gopacket.Payload(quoted[:min(n, len(quoted))])); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// appendEthernet appends a link header. An etherType of 0 is IPv4's.
func appendEthernet(b []byte, dst, src net.HardwareAddr, etherType uint16) []byte {
	if etherType == 0 {
		etherType = uint16(layers.EthernetTypeIPv4)
	}
	b = append(append(b, dst...), src...)
	return append(b, byte(etherType>>8), byte(etherType))
}

// ethernetLen is the length of a link header, in bytes.
const ethernetLen = 14

// ipOf returns what an Ethernet frame carries.
func ipOf(frame []byte) packet.IPv4 { return frame[ethernetLen:] }

func isIPv4(frame []byte) bool {
	return len(frame) >= ethernetLen+packet.IPv4HdrLen &&
		uint16(frame[12])<<8|uint16(frame[13]) == uint16(layers.EthernetTypeIPv4)
}

// describe returns a packet in words, one line a header.
func describe(p packet.IPv4) string {
	text := ""
	for _, line := range (netlab.Captured{Data: p}).Layers() {
		text += "    " + line + "\n"
	}
	return text
}

func addr4(s string) [4]byte { return netip.MustParseAddr(s).As4() }
