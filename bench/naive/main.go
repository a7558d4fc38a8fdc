// Command naive is the ipip tunnel that one writes first: it reads one packet and
// writes one packet. The benchmarks measure goipip against it.
//
//	naive -name tun0 -local 10.90.6.238 -remote 192.168.1.129
//
// The link gets its address and MTU, and is set up, from outside (ip(8)).
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net"

	"github.com/songgao/water"
	"golang.org/x/net/ipv4"
)

const (
	protoIPIP = 4
	maxPacket = 65535 // bytes
)

func main() {
	name := flag.String("name", "tun0", "name of the link")
	local := flag.String("local", "", "outer address of this end")
	remote := flag.String("remote", "", "outer address of the other end")
	flag.Parse()
	if err := run(*name, net.ParseIP(*local).To4(), net.ParseIP(*remote).To4()); err != nil {
		log.Fatal("naive: ", err)
	}
}

// run carries packets until the link or the socket fails.
func run(name string, local, remote net.IP) error {
	if local == nil || remote == nil {
		return errors.New("-local and -remote must be IPv4 addresses")
	}
	tun, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if err != nil {
		return fmt.Errorf("create tun %s: %w", name, err)
	}
	defer tun.Close()
	conn, err := net.ListenIP(fmt.Sprintf("ip4:%d", protoIPIP), &net.IPAddr{IP: local})
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer conn.Close()
	if _, err := ipv4.NewRawConn(conn); err != nil { // sets IP_HDRINCL
		return fmt.Errorf("set up raw socket: %w", err)
	}
	ended := make(chan error)
	go func() { ended <- transmit(tun, conn, local, remote) }()
	go func() { ended <- receive(conn, tun, remote) }()
	return <-ended
}

// transmit sends each packet of the link to remote, behind an outer header.
func transmit(tun *water.Interface, conn *net.IPConn, local, remote net.IP) error {
	outer := ipv4.Header{ // the kernel adds length and checksum
		Version:  ipv4.Version,
		Len:      ipv4.HeaderLen,
		Flags:    ipv4.DontFragment,
		TTL:      64,
		Protocol: protoIPIP,
		Src:      local,
		Dst:      remote,
	}
	header, err := outer.Marshal()
	if err != nil {
		return fmt.Errorf("make outer header: %w", err)
	}
	to := &net.IPAddr{IP: remote}
	buf := make([]byte, ipv4.HeaderLen+maxPacket)
	copy(buf, header)
	for {
		n, err := tun.Read(buf[ipv4.HeaderLen:])
		if err != nil {
			return fmt.Errorf("read tun: %w", err)
		}
		if _, err := conn.WriteToIP(buf[:ipv4.HeaderLen+n], to); err != nil {
			log.Print("naive: dropped: ", err) // no route, too big, …
		}
	}
}

// receive passes each packet from remote to the link.
func receive(conn *net.IPConn, tun *water.Interface, remote net.IP) error {
	buf := make([]byte, maxPacket)
	for {
		// ReadFromIP would strip the header, but by a copy of all of buf.
		n, _, _, from, err := conn.ReadMsgIP(buf, nil)
		if err != nil {
			return fmt.Errorf("read raw socket: %w", err)
		}
		headerLen := int(buf[0]&0x0f) * 4
		if headerLen > n || !from.IP.Equal(remote) {
			continue
		}
		if _, err := tun.Write(buf[headerLen:n]); err != nil {
			log.Print("naive: dropped: ", err) // the link is not up
		}
	}
}
