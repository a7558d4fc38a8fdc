package encap_test

import (
	"fmt"
	"net/netip"

	"goipip/encap"
)

// ping is an echo request from 10.0.0.1 to 10.0.0.2 with TTL 64, 36 bytes long.
const ping = "\x45\x00\x00\x24\xbe\xef\x40\x00\x40\x01\x67\xe7\x0a\x00\x00\x01\x0a\x00\x00\x02" +
	"\x08\x00\x54\x35\x12\x34\x00\x01abcdefgh"

func ExampleEncapsulator_Encap() {
	e, err := encap.NewEncapsulator(encap.Outer{
		Format: encap.IPIP,
		Local:  netip.MustParseAddr("10.90.6.238"),
		Remote: netip.MustParseAddr("192.168.1.129"),
	}, encap.NewIDs(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	hdr := make([]byte, e.HdrLen()) // for any number of packets

	v := e.Encap(hdr, []byte(ping))
	fmt.Println(v)
	fmt.Printf("% x | % x\n", hdr[:12], hdr[12:]) // addresses behind the bar

	v = e.Encap(hdr, []byte("\x60 an IPv6 packet"))
	fmt.Println(v)

	// Output:
	// deliver
	// 45 00 00 38 00 00 40 00 40 04 67 51 | 0a 5a 06 ee c0 a8 01 81
	// not_ipv4
}

func ExampleDecapsulator_Decap() {
	here := netip.MustParseAddr("192.168.1.129")
	peer := netip.MustParseAddr("10.90.6.238")
	stranger := netip.MustParseAddr("203.0.113.1")

	const header = "\x45\x00\x00\x38\x00\x00\x40\x00\x40\x04\x67\x51\x0a\x5a\x06\xee\xc0\xa8\x01\x81"
	received := []byte(header + ping) // from peer to here

	for _, remote := range []netip.Addr{peer, stranger} {
		d, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, Local: here, Remote: remote}, nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		inner, v := d.Decap(received)
		fmt.Printf("tunnel to %v: %v, %d bytes\n", remote, v, len(inner))
	}

	// Output:
	// tunnel to 10.90.6.238: deliver, 36 bytes
	// tunnel to 203.0.113.1: wrong_peer, 0 bytes
}
