package netlab_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// edit changes the headers of a packet before it is built, lengths and checksums excepted.
type edit func(outer, inner *layers.IPv4)

// craft builds an ipip packet as ns02's end of Lab 2's tunnel sends it to ns01, around a UDP packet with the given inner ID,
// and changed by edits.
func craft(t *testing.T, id int, edits ...edit) []byte {
	t.Helper()
	header := func(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{
			Version: 4, TTL: 64, Protocol: proto,
			SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst),
		}
	}
	outer := header("192.168.8.101", "192.168.6.101", layers.IPProtocolIPv4) // 4
	inner := header("172.56.2.101", "172.56.1.101", layers.IPProtocolUDP)
	inner.Id = uint16(id)
	for _, edit := range edits {
		edit(outer, inner)
	}
	// Packets of different flows are not merged on their way.
	udp := &layers.UDP{SrcPort: layers.UDPPort(id), DstPort: 9} // discard (RFC 863)
	udp.SetNetworkLayerForChecksum(inner)
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, outer, inner, udp, gopacket.Payload("crafted")); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// send sends crafted packets from host as they are.
func send(t *testing.T, host *netlab.Host, packets ...[]byte) {
	t.Helper()
	if err := host.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		for _, p := range packets {
			to := &unix.SockaddrInet4{Addr: [4]byte(p[16:20])} // the outer destination
			if err := unix.Sendto(fd, p, 0, to); err != nil {
				return os.NewSyscallError("sendto", err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// delivered sends crafted packets from host, and returns those that come out of tun01, by their inner IDs.
func (l *tunnelLab) delivered(t *testing.T, host *netlab.Host, packets ...[]byte) map[int]netlab.Captured {
	t.Helper()
	const last = 65000
	c := startCapture(t, l.ns01, "tun01")
	defer c.Close()
	underlay := startCapture(t, l.ns01, "veth01")
	defer underlay.Close()
	send(t, host, packets...)
	// All are there before the last is sent, on whatever way they come.
	arrived := 0
	if _, err := underlay.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		if !p.Outgoing && p.Data[9] == unix.IPPROTO_IPIP {
			arrived++
		}
		return arrived == len(packets)
	}); err != nil {
		t.Fatal(err)
	}
	send(t, l.ns02, craft(t, last))
	found := map[int]netlab.Captured{}
	if _, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		hdr, err := ipv4.ParseHeader(p.Data)
		if err != nil {
			t.Errorf("%x comes out of tun01: %v", p.Data, err)
			return false
		}
		if hdr.ID != last && !p.Outgoing {
			found[hdr.ID] = p
		}
		return hdr.ID == last
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// counts fails the test unless goipip's log has these counters, once it is asked for them.
func (b *background) counts(t *testing.T, counters ...string) {
	t.Helper()
	if err := b.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	b.out.waitFor(t, "msg=counters")
	mentions(t, "the log", b.out.String(), counters...)
}

// innerFrom and innerTo change the inner addresses.
func innerFrom(a string) edit { return func(_, inner *layers.IPv4) { inner.SrcIP = net.ParseIP(a) } }
func innerTo(a string) edit   { return func(_, inner *layers.IPv4) { inner.DstIP = net.ParseIP(a) } }

// outerFrom and outerTo change the outer addresses.
func outerFrom(a string) edit { return func(outer, _ *layers.IPv4) { outer.SrcIP = net.ParseIP(a) } }
func outerTo(a string) edit   { return func(outer, _ *layers.IPv4) { outer.DstIP = net.ParseIP(a) } }

func TestG1_WrongPeer(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"", "--queues 2"} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			lab := labtest.New(t)
			l := newTunnelLabIn(t, lab)
			ns03 := l.third(t, lab)
			if err := l.ns01.AddAddr("veth01", "192.168.6.111/24"); err != nil {
				t.Fatal(err)
			}
			tun01, _ := l.start(t, strings.Fields(options)...)
			unreachable := startCapture(t, ns03, "veth03")

			if found := l.delivered(t, ns03, craft(t, 1, outerFrom("192.168.9.101")), craft(t, 2, outerFrom("192.168.9.102"))); len(found) > 0 {
				t.Errorf("packets of another host come out of the tunnel: %v", found)
			}
			// R3: no socket matches, so the kernel says that there is no such protocol here.
			if _, err := unreachable.Wait(labtest.Context(t), func(p netlab.Captured) bool {
				return strings.Contains(p.String(), "DestinationUnreachable(Protocol)")
			}); err != nil {
				t.Error(err)
			}
			if found := l.delivered(t, l.ns02, craft(t, 1, outerTo("192.168.6.111"))); len(found) > 0 {
				t.Errorf("packets to another address of this host come out of the tunnel: %v", found)
			}

			// A tunnel that only its other end knows of, with the addresses of the right one inside.
			end03 := end{ns03, "tun03", "192.168.9.101", "192.168.6.101", "172.56.2.101", "172.56.1.101"}
			tun03 := end03.start(t)
			intruder := path{a: ns03, b: l.ns01, addrA: l.addrB, addrB: l.addrA}
			intruder.dead(t, netlab.PingOptions{})
			tun03.exits(t, end03, func() error { return tun03.Signal(unix.SIGTERM) })
			l.pingBothWays(t)
			tun01.hasNoComplaint(t)
		})
	}
}

// Without a route to the remote end the receiving sockets are not connected, and still get only what is this tunnel's.
func TestG1_WrongPeerWithoutRoute(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	l := newTunnelLabIn(t, lab)
	ns03 := l.third(t, lab)
	l.end01.remote = "192.168.77.1" // where no route leads
	tun01 := l.end01.start(t)
	tun01.warns(t, l.end01.remote)
	c := startCapture(t, l.ns01, "tun01")

	send(t, ns03, craft(t, 1, outerFrom("192.168.9.101")), craft(t, 2, outerFrom(l.end01.remote)))
	if _, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool { return !p.Outgoing }); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Packets() {
		if id := binary.BigEndian.Uint16(p.Data[4:]); !p.Outgoing && id != 2 {
			t.Errorf("packet %d of another host comes out of the tunnel", id)
		}
	}
}

func TestG2_Martians(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01, _ := l.start(t)
	// Own on any device, and from then on when it is added.
	const added = "10.7.7.7"
	if err := l.ns01.AddAddr("lo", added+"/32"); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "goipip to know a new address", func() bool {
		return len(l.delivered(t, l.ns02, craft(t, 1, innerFrom(added)))) == 0
	})

	good := []edit{innerFrom("10.9.9.9"), innerFrom("223.255.255.254"), innerTo("224.0.0.5"), innerTo("10.1.1.1")}
	bad := []edit{
		innerFrom("0.0.0.0"), innerFrom("0.1.2.3"), innerFrom("127.0.0.1"), innerFrom("127.255.255.254"),
		innerFrom("224.0.0.5"), innerFrom("239.255.255.255"), innerFrom("240.0.0.1"), innerFrom("255.255.255.255"),
		innerFrom("192.168.6.101"), innerFrom("172.56.1.101"), innerFrom(added),
		innerTo("0.0.0.0"), innerTo("0.1.2.3"), innerTo("127.0.0.1"), innerTo("127.1.2.3"),
	}
	var packets [][]byte
	for i, edit := range append(good, bad...) {
		packets = append(packets, craft(t, i+1, edit))
	}
	found := l.delivered(t, l.ns02, packets...)
	for i := range packets {
		if _, ok := found[i+1]; ok != (i < len(good)) {
			t.Errorf("a packet with inner %v comes out of the tunnel: %t", netlab.Captured{Data: packets[i]}, ok)
		}
	}
	l.pingBothWays(t)
	tun01.counts(t, "rx.dropped_martian=")
}

func TestG3_TTLZero(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01, _ := l.start(t)
	ttl := func(n uint8) edit { return func(_, inner *layers.IPv4) { inner.TTL = n } }
	found := l.delivered(t, l.ns02, craft(t, 1, ttl(0)), craft(t, 2, ttl(1)))
	if len(found) != 1 || found[2].Data == nil {
		t.Errorf("%v comes out of the tunnel, want only the packet with TTL 1", found)
	}
	tun01.counts(t, "rx.dropped_ttl_expired=1")
}

func TestR4_Malformed(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01, _ := l.start(t)
	const inner = ipv4.HeaderLen // where the inner packet begins
	bad := map[string]func(p []byte) []byte{
		"no inner packet":      func(p []byte) []byte { return p[:inner] },
		"half a header":        func(p []byte) []byte { return p[:inner+19] },
		"version 6":            func(p []byte) []byte { p[inner] = 0x65; return p },
		"version 0":            func(p []byte) []byte { p[inner] = 0x05; return p },
		"header of 16 bytes":   func(p []byte) []byte { p[inner] = 0x44; return p },
		"header beyond packet": func(p []byte) []byte { p[inner] = 0x4f; return p },
		"total length beyond":  func(p []byte) []byte { binary.BigEndian.PutUint16(p[inner+2:], 0xffff); return p },
		"total length of 19":   func(p []byte) []byte { binary.BigEndian.PutUint16(p[inner+2:], 19); return p },
		"total length of 0":    func(p []byte) []byte { binary.BigEndian.PutUint16(p[inner+2:], 0); return p },
		"truncated":            func(p []byte) []byte { return p[:len(p)-1] },
	}
	var packets [][]byte
	for _, mangle := range bad {
		packets = append(packets, mangle(craft(t, 1)))
	}
	if found := l.delivered(t, l.ns02, packets...); len(found) > 0 {
		t.Errorf("malformed packets come out of the tunnel: %v", found)
	}
	tun01.counts(t, fmt.Sprintf("rx.dropped_malformed=%d", len(bad)),
		fmt.Sprintf("link.rx_errors=%d link.rx_length_errors=%d", len(bad), len(bad)))

	// What follows the inner packet is padding.
	whole := craft(t, 2)
	found := l.delivered(t, l.ns02, append(whole, "padding"...))
	if got, want := len(found[2].Data), len(whole)-inner; got != want {
		t.Errorf("of a packet with padding %d bytes come out, want %d", got, want)
	}
}

func TestR5_ECN(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01, _ := l.start(t)
	const drop = -1
	// By the inner and the outer ECN field, both in the order Not-ECT, ECT(1), ECT(0), CE.
	want := [4][4]int{
		0b00: {0b00, 0b00, 0b00, drop},
		0b01: {0b01, 0b01, 0b01, 0b11},
		0b10: {0b10, 0b01, 0b10, 0b11},
		0b11: {0b11, 0b11, 0b11, 0b11},
	}
	const dscpInner, dscpOuter = 0x28, 0xb8
	id := func(in, out int) int { return 1 + 4*in + out }
	var packets [][]byte
	for in := range want {
		for out := range want[in] {
			packets = append(packets, craft(t, id(in, out), func(outer, inner *layers.IPv4) {
				outer.TOS, inner.TOS = uint8(dscpOuter|out), uint8(dscpInner|in)
			}))
		}
	}
	found := l.delivered(t, l.ns02, packets...)
	for in := range want {
		for out, want := range want[in] {
			p, ok := found[id(in, out)]
			switch {
			case ok != (want != drop):
				t.Errorf("inner %02b, outer %02b: a packet comes out: %t", in, out, ok)
			case ok && int(p.Data[1]) != dscpInner|want: // R7: the outer DSCP is not copied
				t.Errorf("inner %02b, outer %02b: TOS %#02x, want %#02x", in, out, p.Data[1], dscpInner|want)
			case ok && !strings.HasSuffix(p.Layers()[0], "ok"):
				t.Errorf("inner %02b, outer %02b: %s", in, out, p.Layers()[0])
			}
		}
	}
	tun01.counts(t, "rx.dropped_bad_ecn=1", "link.rx_errors=1 link.rx_length_errors=0 link.rx_frame_errors=1")
}
