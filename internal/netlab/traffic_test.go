package netlab_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// Lengths, in bytes, for a tunnel over Ethernet, whose MTU is 1480 (O2).
const (
	maxEcho     = 1480 - 20 - 8 // of an ICMP or UDP payload that fits the tunnel
	maxEchoEth  = 1500 - 20 - 8 // of one that fits Ethernet without a tunnel
	fragmented  = 20000         // of one that the inner sender fragments
	transferLen = 4 << 20
)

// TestTraffic carries every kind of traffic over Lab 2's tunnel, in each way of running goipip.
func TestTraffic(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	for name, options := range map[string][]string{
		"default":                {},
		"offload off":            {"--offload", "off"},
		"two queues":             {"--queues", "2"},
		"four queues":            {"--queues", "4"},
		"two queues offload off": {"--queues", "2", "--offload", "off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			tun01, tun02 := l.start(t, options...)
			l.carriesAll(t)
			tun01.hasNoComplaint(t)
			tun02.hasNoComplaint(t)
		})
	}
}

// TestTrafficMixed has ends that are run in different ways.
func TestTrafficMixed(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end01.start(t, "--queues", "4")
	l.end02.start(t, "--offload", "off")
	l.carriesTCP(t)
	l.carriesUDP(t)
}

func (p path) carriesAll(t *testing.T) {
	t.Run("ping", p.carriesPing)
	t.Run("tcp", p.carriesTCP)
	t.Run("udp", p.carriesUDP)
	t.Run("raw", p.carriesRaw)
}

// carriesPing pings with each size that fits, one that is fragmented inside, and those that are too long.
func (p path) carriesPing(t *testing.T) {
	for size := 1; size <= maxEcho && !t.Failed(); size++ {
		p.ping(t, netlab.PingOptions{Size: size, DF: true, Reply: p.untouched(t)})
	}
	p.ping(t, netlab.PingOptions{Size: fragmented, Count: 5})
	p.reverse().ping(t, netlab.PingOptions{Size: fragmented, Count: 5})
	// As with the kernel's tunnel, it is the link's MTU that says so, before a packet is made.
	for size := maxEcho + 1; size <= maxEchoEth; size++ {
		p.refused(t, size)
	}
	p.pingBothWays(t)
}

// untouched looks at replies: no tunnel has changed their TTL (O9).
func (p path) untouched(t *testing.T) func(netlab.Reply) {
	return func(r netlab.Reply) {
		if r.TTL != 64 {
			t.Errorf("ttl=%d, want 64", r.TTL)
		}
	}
}

// carriesTCP transfers in each direction, alone and many at once.
func (p path) carriesTCP(t *testing.T) {
	p.transfer(t, transferLen)
	p.reverse().transfer(t, transferLen)

	var flows sync.WaitGroup
	for range 6 {
		flows.Go(func() { p.transfer(t, transferLen/4) })
		flows.Go(func() { p.reverse().transfer(t, transferLen/4) })
	}
	flows.Wait()
}

// transfer sends n bytes from a to b over TCP, and compares.
func (p path) transfer(t *testing.T, n int64) {
	t.Helper()
	if _, err := netlab.Transfer(labtest.Context(t), p.a, p.b, netip.AddrPortFrom(p.addrB, 0), n); err != nil {
		t.Error(err)
	}
}

// carriesUDP sends datagrams of each size that fits, many of some sizes, and longer ones, which are fragmented inside.
func (p path) carriesUDP(t *testing.T) {
	for _, p := range []path{p, p.reverse()} {
		p.echoEachSize(t, "udp", maxEcho)
		p.datagrams(t, 500, maxEcho)
		p.datagrams(t, 500, 4)
		p.datagrams(t, 50, 8000)
	}
}

// datagrams sends n datagrams of size bytes from a to b, none of which may get lost.
func (p path) datagrams(t *testing.T, n, size int) {
	t.Helper()
	received, err := netlab.Datagrams(labtest.Context(t), p.a, p.b, netip.AddrPortFrom(p.addrB, 0), n, size)
	if err != nil {
		t.Error(err)
	} else if received != n {
		t.Errorf("%d of %d datagrams of %d bytes arrived from %s on %s", received, n, size, p.a.Name, p.b.Name)
	}
}

// carriesRaw uses protocols that the tunnel knows nothing of: SCTP's number, and one for experiments (RFC 3692).
func (p path) carriesRaw(t *testing.T) {
	for _, proto := range []int{unix.IPPROTO_SCTP, 253} {
		p.echoEachSize(t, fmt.Sprintf("ip4:%d", proto), maxEcho+8) // there is no header of 8 bytes
	}
}

// echoEachSize sends a packet of each size from a to b, which sends it back. The network is one that net.ListenPacket knows.
func (p path) echoEachSize(t *testing.T, network string, largest int) {
	t.Helper()
	client, server := listen(t, p.a, network, p.addrA), listen(t, p.b, network, p.addrB)
	go func() { // until server is closed
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(buf[:n], from) // What does not arrive is missed below.
		}
	}()
	content := rand.NewChaCha8([32]byte{})
	sent, got := make([]byte, largest), make([]byte, 1<<16)
	for size := 1; size <= largest; size++ {
		content.Read(sent[:size])
		client.SetDeadline(time.Now().Add(answerTime))
		if _, err := client.WriteTo(sent[:size], server.LocalAddr()); err != nil {
			t.Fatalf("%s packet of %d bytes: %v", network, size, err)
		}
		n, _, err := client.ReadFrom(got)
		if err != nil {
			t.Fatalf("%s packet of %d bytes from %s: %v", network, size, p.a.Name, err)
		}
		if !bytes.Equal(got[:n], sent[:size]) {
			t.Fatalf("%s packet of %d bytes from %s comes back as %d other bytes", network, size, p.a.Name, n)
		}
	}
}

// listen opens a socket on host that ends with the test.
func listen(t *testing.T, host *netlab.Host, network string, addr netip.Addr) net.PacketConn {
	t.Helper()
	address := addr.String()
	if network == "udp" {
		address += ":0"
	}
	var conn net.PacketConn
	if err := host.Do(func() (err error) {
		conn, err = net.ListenPacket(network, address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
