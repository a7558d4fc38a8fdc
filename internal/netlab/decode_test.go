package netlab_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/netlab"
)

// Headers of the golden packets, in hex. Checksums are right.
const (
	// 192.168.6.101 > 192.168.8.101, ttl 63, tos 0xb8, id 1, DF, IPIP
	outerICMP = "45b8003a 00014000 3f04aaec c0a80665 c0a80865 "
	outerTCP  = "45b80040 00014000 3f04aae6 c0a80665 c0a80865 "
	outerUDP  = "45b80035 00014000 3f04aaf1 c0a80665 c0a80865 "
	// 172.56.1.101 > 172.56.2.101, ttl 64, id 2, DF
	innerICMP = "45000026 00024000 4001de9a ac380165 ac380265 "
	innerTCP  = "4500002c 00024000 4006de8f ac380165 ac380265 "
	innerUDP  = "45000021 00024000 4011de8f ac380165 ac380265 "
	// Echo request 1 of id 1; SYN from 40000 to 80 with an MSS option; 5353 to 53
	echo = "0800f2f3 00010001 30313233343536373839"
	syn  = "9c400050 00000007 00000000 6002faf0 a4630000 020405b4"
	udp  = "14e90035 000d4aa9 68656c6c6f"
	// 192.168.6.1 > 192.168.6.101, ttl 64, id 9, DF, ICMP
	routerICMP = "4500001d 00094000 4001ad20 c0a80601 c0a80665 "
)

const (
	outerBrief = "IP 192.168.6.101 > 192.168.8.101: "
	outerFull  = "IPv4 192.168.6.101 > 192.168.8.101: ttl 63, tos 0xb8, id 1, flags [DF], offset 0, proto IPIP (4), "
	innerFull  = "IPv4 172.56.1.101 > 172.56.2.101: ttl 64, tos 0x00, id 2, flags [DF], offset 0, proto "
	routerFull = "IPv4 192.168.6.1 > 192.168.6.101: ttl 64, tos 0x00, id 9, flags [DF], offset 0, proto ICMP (1), length 29, checksum 0xad20 ok"
)

var decodeTests = map[string]struct {
	packet  string // hex, with spaces
	partial bool
	brief   string
	full    []string
}{
	"ICMP in IPIP": {
		packet: outerICMP + innerICMP + echo,
		brief:  outerBrief + "IP 172.56.1.101 > 172.56.2.101: ICMP echo request, id 1, seq 1, length 18",
		full: []string{
			outerFull + "length 58, checksum 0xaaec ok",
			innerFull + "ICMP (1), length 38, checksum 0xde9a ok",
			"ICMP echo request, id 1, seq 1, length 18, checksum 0xf2f3 ok",
		},
	},
	"TCP in IPIP": {
		packet: outerTCP + innerTCP + syn,
		brief:  outerBrief + "IP 172.56.1.101.40000 > 172.56.2.101.80: Flags [S], seq 7, win 64240, length 0",
		full: []string{
			outerFull + "length 64, checksum 0xaae6 ok",
			innerFull + "TCP (6), length 44, checksum 0xde8f ok",
			"TCP 40000 > 80: Flags [S], seq 7, win 64240, length 0, options [TCPOption(MSS:1460 0x05b4)], checksum 0xa463 ok",
		},
	},
	"UDP in IPIP": {
		packet: outerUDP + innerUDP + udp,
		brief:  outerBrief + "IP 172.56.1.101.5353 > 172.56.2.101.53: UDP, length 5",
		full: []string{
			outerFull + "length 53, checksum 0xaaf1 ok",
			innerFull + "UDP (17), length 33, checksum 0xde8f ok",
			"UDP 5353 > 53: length 5, checksum 0x4aa9 ok",
		},
	},
	"UDP without checksum": {
		packet: innerUDP + strings.Replace(udp, "4aa9", "0000", 1),
		brief:  "IP 172.56.1.101.5353 > 172.56.2.101.53: UDP, length 5",
		full:   []string{innerFull + "UDP (17), length 33, checksum 0xde8f ok", "UDP 5353 > 53: length 5, checksum none"},
	},
	"bad checksums": {
		packet: strings.Replace(innerUDP, "de8f", "de90", 1) + strings.Replace(udp, "4aa9", "4aa8", 1),
		brief:  "IP 172.56.1.101.5353 > 172.56.2.101.53: UDP, length 5",
		full: []string{
			innerFull + "UDP (17), length 33, checksum 0xde90 bad, right is 0xde8f",
			"UDP 5353 > 53: length 5, checksum 0x4aa8 bad, right is 0x4aa9",
		},
	},
	"partial checksum": {
		packet:  outerUDP + innerUDP + udp,
		partial: true,
		brief:   outerBrief + "IP 172.56.1.101.5353 > 172.56.2.101.53: UDP, length 5",
		full: []string{
			outerFull + "length 53, checksum 0xaaf1 ok",
			innerFull + "UDP (17), length 33, checksum 0xde8f ok",
			"UDP 5353 > 53: length 5, checksum partial",
		},
	},
	"fragmentation needed": {
		packet: routerICMP + "0304b283 00000578 45",
		brief:  "IP 192.168.6.1 > 192.168.6.101: ICMP fragmentation needed, mtu 1400, length 9",
		full:   []string{routerFull, "ICMP fragmentation needed, mtu 1400, length 9, checksum 0xb283 ok"},
	},
	"protocol unreachable": {
		packet: routerICMP + "0302b7fd 00000000 45",
		brief:  "IP 192.168.6.1 > 192.168.6.101: ICMP DestinationUnreachable(Protocol), length 9",
		full:   []string{routerFull, "ICMP DestinationUnreachable(Protocol), length 9, checksum 0xb7fd ok"},
	},
	"another protocol": {
		packet: "45000018 00094000 402facf7 c0a80601 c0a80665 00000800",
		brief:  "IP 192.168.6.1 > 192.168.6.101: GRE, length 4",
		full: []string{
			"IPv4 192.168.6.1 > 192.168.6.101: ttl 64, tos 0x00, id 9, flags [DF], offset 0, proto GRE (47), length 24, checksum 0xacf7 ok",
			"GRE, length 4",
		},
	},
	"first fragment of UDP": {
		packet: "4500001c 00032000 4011ca9f c0a80665 c0a80865 14e90035 05dc1234",
		brief:  "IP 192.168.6.101.5353 > 192.168.8.101.53: UDP, length 1492",
		full: []string{
			"IPv4 192.168.6.101 > 192.168.8.101: ttl 64, tos 0x00, id 3, flags [MF], offset 0, proto UDP (17), length 28, checksum 0xca9f bad, right is 0xcab3",
			"UDP 5353 > 53: length 1492, checksum of more than this fragment",
		},
	},
	"last fragment of IPIP": {
		packet: "4500001c 000300b9 4004ea07 c0a80665 c0a80865 3132333435363738",
		brief:  outerBrief + "IPIP fragment at byte 1480, length 8",
		full: []string{
			"IPv4 192.168.6.101 > 192.168.8.101: ttl 64, tos 0x00, id 3, flags [], offset 1480, proto IPIP (4), length 28, checksum 0xea07 ok",
			"IPIP fragment at byte 1480, length 8",
		},
	},
	"IPv6 in IPv4": {
		packet: "45000044 00034000 4029aa73 c0a80665 c0a80865 " +
			"60000000 00083aff fe800000000000000000000000000001 ff020000000000000000000000000002 8500000000000000",
		brief: outerBrief + "IP6 fe80::1 > ff02::2: ICMPv6, length 8",
		full: []string{
			"IPv4 192.168.6.101 > 192.168.8.101: ttl 64, tos 0x00, id 3, flags [DF], offset 0, proto IPv6 (41), length 68, checksum 0xaa73 ok",
			"IP6 fe80::1 > ff02::2: ICMPv6, length 8",
		},
	},
	"cut inside the inner header": {
		packet: outerICMP + innerICMP[:20],
		brief:  outerBrief + "malformed IP: Invalid ip4 header. Length 9 less than 20",
		full:   []string{outerFull + "length 58, checksum 0xaaec ok", "malformed IP: Invalid ip4 header. Length 9 less than 20"},
	},
	"nothing": {
		brief: "malformed IP: Invalid ip4 header. Length 0 less than 20",
		full:  []string{"malformed IP: Invalid ip4 header. Length 0 less than 20"},
	},
}

func TestDecode(t *testing.T) {
	for name, test := range decodeTests {
		t.Run(name, func(t *testing.T) {
			p := captured(t, test.packet)
			p.CsumPartial = test.partial
			if diff := cmp.Diff(test.brief, p.String()); diff != "" {
				t.Errorf("String (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.full, p.Layers()); diff != "" {
				t.Errorf("Layers (-want +got):\n%s", diff)
			}
		})
	}
}

func captured(t *testing.T, packet string) netlab.Captured {
	t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(packet, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return netlab.Captured{Data: data}
}

// Packets come from outside: whatever they are, decoding ends and changes nothing.
func FuzzDecode(f *testing.F) {
	for _, test := range decodeTests {
		data, err := hex.DecodeString(strings.ReplaceAll(test.packet, " ", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := string(data)
		p := netlab.Captured{Data: data}
		if p.String() == "" || len(p.Layers()) == 0 {
			t.Error("nothing to say")
		}
		if string(data) != before {
			t.Error("decoding changed the packet")
		}
	})
}

func ExampleCaptured_String() {
	data, _ := hex.DecodeString(strings.ReplaceAll(outerICMP+innerICMP+echo, " ", ""))
	fmt.Println(netlab.Captured{Data: data})
	// Output: IP 192.168.6.101 > 192.168.8.101: IP 172.56.1.101 > 172.56.2.101: ICMP echo request, id 1, seq 1, length 18
}
