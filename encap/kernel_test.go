package encap_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// cable is a veth without offloads on the near end, so that the kernel segments
// superpackets as it does for a plain network card (validate_xmit_skb in
// net/core/dev.c). No host has an address, so that nothing else is sent.
type cable struct {
	near, far *netlab.Host
	wire      *netlab.Capture
	seen      int // packets of wire
	fd        int
	to        unix.SockaddrLinklayer
	ethernet  []byte // header
}

func newCable(t *testing.T) *cable {
	t.Helper()
	labtest.Need(t, "ethtool")
	lab := labtest.New(t)
	c := &cable{}
	var err error
	if c.near, err = lab.Host("near"); err != nil {
		t.Fatal(err)
	}
	if c.far, err = lab.Host("far"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		lab.Veth(c.near, "eth0", c.far, "eth0"),
		c.near.SetMTU("eth0", packet.IPv4MaxLen),
		c.far.SetMTU("eth0", packet.IPv4MaxLen),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := c.near.Output("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "tx-udp-segmentation", "off"); err != nil {
		t.Fatal(err)
	}
	if c.wire, err = c.far.Capture("eth0"); err != nil {
		t.Fatal(err)
	}
	near, err := c.near.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	far, err := c.far.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	c.to = unix.SockaddrLinklayer{Ifindex: near.Attrs().Index}
	c.ethernet = append(bytes.Clone(far.Attrs().HardwareAddr), near.Attrs().HardwareAddr...)
	c.ethernet = append(c.ethernet, unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff)
	if err := c.near.Do(func() error {
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

// cuts returns the n packets that the kernel makes of p.
func (c *cable) cuts(t *testing.T, p packet.IPv4, h packet.VNetHdr, n int) []netlab.Captured {
	t.Helper()
	h.HdrLen += uint16(len(c.ethernet))
	h.CsumStart += uint16(len(c.ethernet))
	frame := make([]byte, packet.VNetHdrLen)
	h.Encode(frame)
	if err := unix.Sendto(c.fd, append(append(frame, c.ethernet...), p...), 0, &c.to); err != nil {
		t.Fatalf("send %d bytes with %+v: %v", len(p), h, err)
	}
	seen := c.seen
	c.seen += n
	labtest.WaitFor(t, "the kernel's segments", func() bool { return len(c.wire.Packets()) >= c.seen })
	return c.wire.Packets()[seen:]
}

// check fails unless Segment and the kernel make the same segments of p.
func (c *cable) check(t *testing.T, p packet.IPv4, size int) {
	t.Helper()
	h := superHdr(p, size)
	want := cut(t, p, h)
	got := c.cuts(t, p, h, len(want))
	if len(got) != len(want) {
		t.Fatalf("%d bytes in segments of %d: the kernel makes %d packets, Segment %d", len(p), size, len(got), len(want))
	}
	for i, k := range got {
		if k.CsumPartial {
			t.Fatal("the kernel leaves a checksum to the hardware: the test proves nothing")
		}
		if !bytes.Equal(k.Data, want[i]) {
			t.Fatalf("%d bytes, segment %d of %d: the kernel's has\n% x, Segment's\n% x",
				len(p), i, len(want), k.Data[:min(len(k.Data), 120)], want[i][:min(len(want[i]), 120)])
		}
	}
}

// Every segment is byte for byte the same as the kernel's.
func TestSegment_AsTheKernel(t *testing.T) {
	c := newCable(t)
	r := rand.New(rand.NewPCG(65515, 4))
	data := randomBytes(r, packet.IPv4MaxLen)
	options := [][]byte{nil, timestamps, fortyBytes, bytes.Repeat([]byte{1}, 20)}
	payloads := []int{2, 3, 536, 1428, 1429, 2856, 2857, 65415, 65455, 65495}
	sizes := []int{1, 2, 7, 536, 1361, 1428, 1448, 9000, 32768, 65415}
	// random returns one of some numbers, or another up to the last.
	random := func(known []int) int {
		if r.IntN(3) > 0 {
			return known[r.IntN(len(known))]
		}
		return 1 + r.IntN(known[len(known)-1])
	}
	for i := range 1000 {
		n := max(2, random(payloads))
		size := min(random(sizes), n-1) // the kernel makes no superpacket of one segment
		ip := ipv4{
			src: unicast(r), dst: unicast(r), tos: uint8(r.Uint32()), ttl: 1 + r.IntN(255),
			id: uint16(r.Uint32()), df: r.IntN(2) == 0,
		}
		if r.IntN(4) == 0 {
			ip.id, ip.options = 0xfffe, [][]byte{routerAlert, fortyBytes}[r.IntN(2)]
		}
		if i%3 == 0 {
			// The kernel's limit for UDP before Linux 6.10 is 64 (UDP_MAX_SEGMENTS).
			u := udpDatagram{ip: ip, port: uint16(r.Uint32()), data: data[:min(n, 64*size, packet.IPv4MaxLen-28-len(ip.options))]}
			c.check(t, u.build(partial), min(size, len(u.data)-1))
			continue
		}
		s := tcpSegment{
			ip: ip, port: uint16(r.Uint32()), seq: r.Uint32(), ack: r.Uint32(), window: uint16(r.Uint32()),
			flags: uint8(r.Uint32()), noAck: r.IntN(4) == 0, options: options[r.IntN(len(options))],
		}
		if r.IntN(4) == 0 {
			s.seq, s.urgent, s.reserved = 0xffffff00, uint16(r.Uint32()), uint8(r.IntN(16))
		}
		s.data = data[:min(n, 500*size, packet.IPv4MaxLen-40-len(ip.options)-len(s.options))]
		c.check(t, s.build(partial), min(size, len(s.data)-1))
	}
}

// All flags, one by one.
func TestSegment_FlagsAsTheKernel(t *testing.T) {
	c := newCable(t)
	data := bytes.Repeat([]byte{0xa5}, 2500)
	for flags := range 0x100 {
		t.Run(fmt.Sprintf("%#02x", flags), func(t *testing.T) {
			for _, size := range []int{1000, 2499} {
				s := tcpSegment{ip: ipv4{id: 0xffff, df: flags%2 == 0}, flags: uint8(flags), noAck: true, window: 9, data: data}
				c.check(t, s.build(partial), size)
			}
		})
	}
}
