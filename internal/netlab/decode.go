package netlab

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// String returns one line like tcpdump's, in which each IP header leads to what is inside:
//
//	IP 192.168.6.101 > 192.168.8.101: IP 172.56.1.101 > 172.56.2.101: ICMP echo request, id 1, seq 1, length 64
func (p Captured) String() string {
	var briefs []string
	for _, d := range p.describe() {
		briefs = append(briefs, d.brief)
	}
	return strings.Join(briefs, ": ")
}

// Layers returns one line for each header, the outermost first, with all of its fields and whether its checksum is right.
func (p Captured) Layers() []string {
	var lines []string
	for _, d := range p.describe() {
		lines = append(lines, d.full)
	}
	return lines
}

// description is what there is to say about one header.
type description struct {
	brief, full string
	// srcPort and dstPort, if there are ports, are ".80" and the like. tcpdump writes them behind the IP addresses.
	srcPort, dstPort string
}

// describe describes the headers from the outermost IP header on, in a copy, because gopacket's VerifyChecksum appends the
// payload to the header in place.
func (p Captured) describe() []description {
	p.Data = bytes.Clone(p.Data)
	return p.decode()
}

// decode returns at least one description. The last may be of why decoding ended.
//
// It does not share code with goipip's own packet package, which it is there to test.
func (p Captured) decode() []description {
	if len(p.Data) > 0 && p.Data[0]>>4 == 6 {
		return decodeIPv6(p.Data)
	}
	ip := &layers.IPv4{}
	if err := ip.DecodeFromBytes(p.Data, gopacket.NilDecodeFeedback); err != nil {
		return remark("malformed IP: %v", err)
	}

	var inside []description
	switch payload := (Captured{Data: ip.Payload, CsumPartial: p.CsumPartial}); {
	case ip.FragOffset != 0:
		inside = remark("%s fragment at byte %d, length %d", protocol(ip), 8*int(ip.FragOffset), len(ip.Payload))
	case ip.Protocol == layers.IPProtocolIPv4 || ip.Protocol == layers.IPProtocolIPv6:
		inside = payload.decode()
	case ip.Protocol == layers.IPProtocolICMPv4:
		inside = payload.decodeICMP(ip)
	case ip.Protocol == layers.IPProtocolTCP:
		inside = payload.decodeTCP(ip)
	case ip.Protocol == layers.IPProtocolUDP:
		inside = payload.decodeUDP(ip)
	default:
		inside = remark("%s, length %d", protocol(ip), len(ip.Payload))
	}

	outside := description{
		brief: fmt.Sprintf("IP %s%s > %s%s", ip.SrcIP, inside[0].srcPort, ip.DstIP, inside[0].dstPort),
		full: fmt.Sprintf("IPv4 %s > %s: ttl %d, tos %#02x, id %d, flags [%v], offset %d, proto %s (%d), length %d, checksum %s",
			ip.SrcIP, ip.DstIP, ip.TTL, ip.TOS, ip.Id, ip.Flags, 8*int(ip.FragOffset),
			protocol(ip), ip.Protocol, ip.Length, verify(ip)),
	}
	return append([]description{outside}, inside...)
}

// decodeIPv6 describes no more than the IPv6 header, which goipip does not carry.
func decodeIPv6(data []byte) []description {
	var ip layers.IPv6
	if err := ip.DecodeFromBytes(data, gopacket.NilDecodeFeedback); err != nil {
		return remark("malformed IP6: %v", err)
	}
	return remark("IP6 %s > %s: %v, length %d", ip.SrcIP, ip.DstIP, ip.NextHeader, len(ip.Payload))
}

func (p Captured) decodeICMP(ip *layers.IPv4) []description {
	var icmp layers.ICMPv4
	if err := icmp.DecodeFromBytes(p.Data, gopacket.NilDecodeFeedback); err != nil {
		return remark("malformed ICMP: %v", err)
	}
	var what string
	switch icmp.TypeCode {
	case layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0):
		what = fmt.Sprintf("echo request, id %d, seq %d", icmp.Id, icmp.Seq)
	case layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoReply, 0):
		what = fmt.Sprintf("echo reply, id %d, seq %d", icmp.Id, icmp.Seq)
	case layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded):
		what = fmt.Sprintf("fragmentation needed, mtu %d", icmp.Seq) // RFC 1191, section 4: in the low 16 bits
	default:
		what = icmp.TypeCode.String()
	}
	brief := fmt.Sprintf("ICMP %s, length %d", what, len(p.Data))
	return []description{{brief: brief, full: brief + ", checksum " + p.verify(ip, &icmp)}}
}

func (p Captured) decodeTCP(ip *layers.IPv4) []description {
	var tcp layers.TCP
	if err := tcp.DecodeFromBytes(p.Data, gopacket.NilDecodeFeedback); err != nil {
		return remark("malformed TCP: %v", err)
	}
	brief := fmt.Sprintf("Flags [%s], seq %d", tcpFlags(&tcp), tcp.Seq)
	if tcp.ACK {
		brief += fmt.Sprintf(", ack %d", tcp.Ack)
	}
	brief += fmt.Sprintf(", win %d, length %d", tcp.Window, len(tcp.Payload))
	_ = tcp.SetNetworkLayerForChecksum(ip) // fails for other layers than IP only
	return []description{{
		brief: brief,
		full: fmt.Sprintf("TCP %d > %d: %s, options %v, checksum %s",
			tcp.SrcPort, tcp.DstPort, brief, tcp.Options, p.verify(ip, &tcp)),
		srcPort: fmt.Sprintf(".%d", tcp.SrcPort),
		dstPort: fmt.Sprintf(".%d", tcp.DstPort),
	}}
}

func (p Captured) decodeUDP(ip *layers.IPv4) []description {
	var udp layers.UDP
	if err := udp.DecodeFromBytes(p.Data, gopacket.NilDecodeFeedback); err != nil {
		return remark("malformed UDP: %v", err)
	}
	_ = udp.SetNetworkLayerForChecksum(ip)
	checksum := "none"
	if udp.Checksum != 0 {
		checksum = p.verify(ip, &udp)
	}
	length := int(udp.Length) - 8 // RFC 768: with the header
	return []description{{
		brief:   fmt.Sprintf("UDP, length %d", length),
		full:    fmt.Sprintf("UDP %d > %d: length %d, checksum %s", udp.SrcPort, udp.DstPort, length, checksum),
		srcPort: fmt.Sprintf(".%d", udp.SrcPort),
		dstPort: fmt.Sprintf(".%d", udp.DstPort),
	}}
}

// remark returns one description, brief and full the same.
func remark(format string, args ...any) []description {
	s := fmt.Sprintf(format, args...)
	return []description{{brief: s, full: s}}
}

// verify says whether a transport layer's checksum is right, where that can be said.
func (p Captured) verify(ip *layers.IPv4, l gopacket.LayerWithChecksum) string {
	if ip.Flags&layers.IPv4MoreFragments != 0 {
		return "of more than this fragment"
	}
	if p.CsumPartial && ip.Protocol != layers.IPProtocolICMPv4 {
		return "partial"
	}
	return verify(l)
}

func verify(l gopacket.LayerWithChecksum) string {
	err, result := l.VerifyChecksum()
	switch {
	case err != nil:
		return err.Error()
	case result.Valid:
		return fmt.Sprintf("%#04x ok", result.Actual)
	default:
		return fmt.Sprintf("%#04x bad, right is %#04x", result.Actual, result.Correct)
	}
}

// protocol names what the header carries as tcpdump does. Where that says IPIP, protocol 4, gopacket says IPv4; its own
// IPIP is 94.
func protocol(ip *layers.IPv4) string {
	switch ip.Protocol {
	case layers.IPProtocolIPv4:
		return "IPIP"
	case layers.IPProtocolICMPv4:
		return "ICMP"
	}
	return ip.Protocol.String()
}

// tcpFlags spells flags as tcpdump does.
func tcpFlags(tcp *layers.TCP) string {
	var b strings.Builder
	for _, f := range []struct {
		set  bool
		name byte
	}{
		{tcp.FIN, 'F'}, {tcp.SYN, 'S'}, {tcp.RST, 'R'}, {tcp.PSH, 'P'},
		{tcp.ACK, '.'}, {tcp.URG, 'U'}, {tcp.ECE, 'E'}, {tcp.CWR, 'W'},
	} {
		if f.set {
			b.WriteByte(f.name)
		}
	}
	return b.String()
}
