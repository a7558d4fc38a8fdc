package tun_test

import (
	"errors"
	"fmt"
	"net/netip"

	"goipip/internal/packet"
	"goipip/tun"
)

// The other end of this tunnel is a mirror: each packet comes back from the address that
// it was sent to. The program needs root, and runs until the link is deleted.
func Example() {
	host, err := tun.NewHost()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer host.Close()
	device, err := host.Open(tun.Config{Name: "mirror", Queues: 1, Offload: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer device.Close()
	if err := device.Setup(tun.Link{
		MTU:     1480,
		Remote:  netip.MustParseAddr("192.168.1.129"),
		Address: netip.MustParsePrefix("172.66.1.101/32"),
		Peer:    netip.MustParseAddr("172.66.2.101"),
	}); err != nil {
		fmt.Println(err)
		return
	}

	queue, reader, writer := device.Queues()[0], tun.NewReader(), tun.NewWriter()
	for {
		waitReadable(queue) // by poll(2)
		reader.Reset()
		packets, err := reader.Read(queue)
		if errors.Is(err, tun.ErrDeleted) {
			return
		} else if err != nil {
			fmt.Println(err)
			return
		}
		for _, p := range packets {
			ip := packet.IPv4(p.Bytes)
			if !ip.Valid() {
				continue // IPv6, say
			}
			from, to := ip.Source(), ip.Destination()
			ip.SetSource(to)
			ip.SetDestination(from)
			// A checksum that is still to be finished stays so.
			if err := writer.Write(queue, p.VNet, [][]byte{ip}); err != nil {
				fmt.Println("lost a packet:", err)
			}
		}
	}
}
