package netlab_test

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// TestUnreachableStorm has the router answer with ICMP errors to packets that it did forward.
func TestUnreachableStorm(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"", "--queues 2", "--ttl 64"} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			tun01, tun02 := l.start(t, strings.Fields(options)...)
			l.pingBothWays(t)

			// Connections that are there survive even what goipip may tell their senders of it (T8).
			var transfers sync.WaitGroup
			for _, p := range []path{l.path, l.reverse()} {
				transfers.Go(func() { p.transfer(t, 4*transferLen) })
			}
			l.waitForTransfers(t)
			stop := l.storm(t, icmpErrors(t))
			transfers.Wait()
			l.datagrams(t, 500, maxEcho)
			l.reverse().datagrams(t, 500, maxEcho)
			l.ping(t, netlab.PingOptions{Count: 200})
			l.reverse().ping(t, netlab.PingOptions{Count: 200})
			stop()
			l.pingBothWays(t)
			tun01.hasNoComplaint(t)
			tun02.hasNoComplaint(t)
		})
	}
}

// waitForTransfers returns when TCP data passes the router in both directions.
func (l *tunnelLab) waitForTransfers(t *testing.T) {
	t.Helper()
	c := startCapture(t, l.router, "veth01_p")
	defer c.Close()
	for _, outgoing := range []bool{false, true} {
		if _, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
			return p.Outgoing == outgoing && len(p.Data) > maxEcho
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// storm sends crafted packets from the router again and again, until the returned function is called. It returns when
// goipip's host has got the first.
func (l *tunnelLab) storm(t *testing.T, packets [][]byte) (stop func()) {
	t.Helper()
	c := startCapture(t, l.ns01, "veth01")
	defer c.Close()
	ended := make(chan struct{})
	var sender sync.WaitGroup
	stop = sync.OnceFunc(func() { close(ended); sender.Wait() })
	t.Cleanup(stop)
	sender.Go(func() {
		// Thousands a second, and yet some time for the packets that they are about.
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				send(t, l.router, packets...)
			}
		}
	})
	if _, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		return strings.Contains(p.String(), "ICMP DestinationUnreachable")
	}); err != nil {
		t.Fatal(err)
	}
	return stop
}

// icmpErrors are the errors that a router may send about a packet of Lab 2's tun01, without that of a smaller MTU and the
// redirect, which a host is to believe.
func icmpErrors(t *testing.T) [][]byte {
	t.Helper()
	quoted := craft(t, 1, outerFrom("192.168.6.101"), outerTo("192.168.8.101"), innerFrom("172.56.1.101"), innerTo("172.56.2.101"))
	var packets [][]byte
	for _, what := range []layers.ICMPv4TypeCode{
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeNet),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeHost),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeProtocol),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeSourceRoutingFailed),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeCommAdminProhibited),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeSourceQuench, 0),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeTimeExceeded, layers.ICMPv4CodeTTLExceeded),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeTimeExceeded, layers.ICMPv4CodeFragmentReassemblyTimeExceeded),
		layers.CreateICMPv4TypeCode(layers.ICMPv4TypeParameterProblem, 0),
	} {
		ip := &layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4,
			SrcIP: net.ParseIP("192.168.6.1"), DstIP: net.ParseIP("192.168.6.101"),
		}
		buf := gopacket.NewSerializeBuffer()
		opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
		if err := gopacket.SerializeLayers(buf, opts, ip, &layers.ICMPv4{TypeCode: what}, gopacket.Payload(quoted)); err != nil {
			t.Fatal(err)
		}
		packets = append(packets, buf.Bytes())
	}
	return packets
}
