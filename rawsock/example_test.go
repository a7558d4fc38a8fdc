package rawsock_test

import (
	"fmt"
	"net/netip"

	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// This end of a tunnel is a mirror: a packet comes back from the address that it was
// for, so that a ping from the other end is answered. It needs root, and runs until the
// receiver is closed.
func Example() {
	pair := rawsock.Pair{
		Local:  netip.MustParseAddr("192.168.1.129"),
		Remote: netip.MustParseAddr("10.90.6.238"),
	}
	receiver, err := rawsock.NewReceiver(0, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer receiver.Close()
	if err := receiver.Add(pair); err != nil {
		fmt.Println(err)
		return
	}
	var peer rawsock.Target
	route := rawsock.Route{Remote: pair.Remote}
	peer.Set(route)
	if err := receiver.Connect(route); err != nil {
		fmt.Println("packets of other tunnels cost this one too:", err)
	}
	sender, err := rawsock.NewSender(pair.Local, func(i int, why stats.Reason) {
		fmt.Printf("packet %d of the batch was not sent: %v\n", i, why)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sender.Close()

	var headers [rawsock.BatchSize]packet.IPv4
	for i := range headers {
		headers[i] = make(packet.IPv4, packet.IPv4HdrLen)
		headers[i].InitHeader()
		headers[i].SetDF(true)
		headers[i].SetTTL(64)
		headers[i].SetProtocol(packet.ProtoIPIP)
		headers[i].SetSource(pair.Local.As4())
		headers[i].SetDestination(pair.Remote.As4())
	}
	for {
		packets, err := receiver.Receive()
		if err != nil {
			fmt.Println(err)
			return
		}
		for i, outer := range packets {
			inner := packet.IPv4(outer.Payload())
			if !inner.Valid() {
				continue
			}
			from, to := inner.Source(), inner.Destination()
			inner.SetSource(to) // which leaves all checksums as they are
			inner.SetDestination(from)
			// The kernel fills in the length and the checksum of the outer header.
			sender.Add(&peer, headers[i], inner)
		}
		if err := sender.Flush(); err != nil {
			fmt.Println(err)
			return
		}
	}
}
