package encap_test

import (
	"fmt"
	"net/netip"

	"goipip/encap"
	"goipip/internal/packet"
)

// ping is an echo request from 10.0.0.1 to 10.0.0.2, 36 bytes long.
var ping = packet.IPv4("" +
	"\x45\x00\x00\x24\xbe\xef\x40\x00\x40\x01\x67\xe7\x0a\x00\x00\x01\x0a\x00\x00\x02" +
	"\x08\x00\x54\x35\x12\x34\x00\x01abcdefgh")

func show(what string, p packet.IPv4) {
	fmt.Printf("%s: %v > %v, protocol %d, ttl %d, length %d\n", what,
		netip.AddrFrom4(p.Source()), netip.AddrFrom4(p.Destination()), p.Protocol(), p.TTL(), p.TotalLength())
}

func ExampleEncapsulator_Encap() {
	e, err := encap.NewEncapsulator(encap.Outer{
		Local:  netip.MustParseAddr("10.90.6.238"),
		Remote: netip.MustParseAddr("192.168.1.129"),
		TTL:    255,
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	hdr := make([]byte, encap.HdrLen) // reused for packet after packet
	if v := e.Encap(hdr, ping); v != encap.Deliver {
		fmt.Println("dropped:", v)
		return
	}
	// On the wire, ping follows hdr.
	show("outer", hdr)
	show("inner", ping)

	// A packet that has no hop to go is not sent on.
	expired := append(packet.IPv4(nil), ping...)
	expired.SetTTL(0)
	fmt.Println("dropped:", e.Encap(hdr, expired) == encap.TTLExpired)

	// Output:
	// outer: 10.90.6.238 > 192.168.1.129, protocol 4, ttl 255, length 56
	// inner: 10.0.0.1 > 10.0.0.2, protocol 1, ttl 64, length 36
	// dropped: true
}

func ExampleDecapsulator_Decap() {
	here, there := netip.MustParseAddr("192.168.1.129"), netip.MustParseAddr("10.90.6.238")
	d, err := encap.NewDecapsulator(here, there)
	if err != nil {
		fmt.Println(err)
		return
	}
	received := append(packet.IPv4(""+
		"\x45\x00\x00\x38\x00\x00\x40\x00\x40\x04\x67\x51\x0a\x5a\x06\xee\xc0\xa8\x01\x81"), ping...)

	inner, v := d.Decap(received)
	if v != encap.Deliver {
		fmt.Println("dropped:", v)
		return
	}
	show("inner", inner)

	// Whoever is not the tunnel's remote gets nothing through.
	received.SetSource([4]byte{203, 0, 113, 1})
	received.UpdateChecksum()
	_, v = d.Decap(received)
	fmt.Println("wrong peer:", v == encap.WrongPeer)

	// Output:
	// inner: 10.0.0.1 > 10.0.0.2, protocol 1, ttl 64, length 36
	// wrong peer: true
}
