package tunnel_test

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/tunnel"
)

func clampAuto(c *tunnel.Config) { c.ClampMSS = tunnel.ClampAuto }

// opening is a TCP packet whose options begin with an MSS, as a rule.
type opening struct {
	src, dst  netip.Addr
	port      uint16 // of the source, by which it is found again
	flags     uint8
	ipOptions []byte // a multiple of 4 bytes, as the others
	options   []byte
	data      int // bytes
	partial   bool
}

// linuxOptions are those of a SYN of Linux, with an MSS.
func linuxOptions(mss uint16) []byte {
	return []byte{2, 4, byte(mss >> 8), byte(mss), 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}
}

func (o opening) bytes() packet.IPv4 {
	hdrLen := packet.IPv4HdrLen + len(o.ipOptions)
	p := make(packet.IPv4, hdrLen+packet.TCPHdrLen+len(o.options)+o.data)
	p.InitHeader()
	p[0] = byte(4<<4 | hdrLen/4)
	copy(p[packet.IPv4HdrLen:], o.ipOptions)
	p.SetTotalLength(len(p))
	p.SetID(o.port)
	p.SetDF(true)
	p.SetTTL(64)
	p.SetProtocol(packet.ProtoTCP)
	p.SetSource(o.src.As4())
	p.SetDestination(o.dst.As4())
	p.UpdateChecksum()
	tcp := packet.TCP(p.Payload())
	const discard = 9 // a port where nobody listens
	tcp[0], tcp[1], tcp[3] = byte(o.port>>8), byte(o.port), discard
	tcp[12] = byte(packet.TCPHdrLen+len(o.options)) << 2
	tcp.SetFlags(o.flags)
	copy(tcp[packet.TCPHdrLen:], o.options)
	tcp.SetChecksum(packet.PseudoHeaderSum(p))
	if !o.partial {
		tcp.SetChecksum(^packet.Sum(tcp, 0))
	}
	return p
}

// withMSS returns the packet with another MSS, if it has one.
func (o opening) withMSS(mss uint16) packet.IPv4 {
	if _, at := packet.TCP(o.bytes().Payload()).MSS(); at != 0 {
		o.options = bytes.Clone(o.options)
		o.options[at-packet.TCPHdrLen], o.options[at+1-packet.TCPHdrLen] = byte(mss>>8), byte(mss)
	}
	return o.bytes()
}

// wrap returns p in an outer packet from s to another end.
func (s *site) wrap(to *site, p packet.IPv4) packet.IPv4 {
	outer := make(packet.IPv4, packet.IPv4HdrLen, packet.IPv4HdrLen+len(p))
	outer.InitHeader()
	outer.SetTotalLength(packet.IPv4HdrLen + len(p))
	outer.SetDF(true)
	outer.SetTTL(64)
	outer.SetProtocol(packet.ProtoIPIP)
	outer.SetSource(s.outer.As4())
	outer.SetDestination(to.outer.As4())
	return append(outer, p...)
}

// tcpOf returns a captured packet from its innermost IP header on, if that is of TCP from a port.
func tcpOf(p netlab.Captured, port uint16) (inner packet.IPv4, ok bool) {
	inner = p.Data
	if inner.Valid() && inner.Protocol() == packet.ProtoIPIP {
		inner = inner.Payload()
	}
	if !inner.Valid() || inner.Protocol() != packet.ProtoTCP {
		return nil, false
	}
	tcp := packet.TCP(inner.Payload())
	return inner, tcp.Valid() && tcp.Ports()>>16 == uint32(port)
}

// tcpFrom waits for a packet from a port in a capture, which went out or came in.
func tcpFrom(t testing.TB, c *netlab.Capture, port uint16, outgoing bool) (inner packet.IPv4, partial bool) {
	t.Helper()
	p, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		_, ok := tcpOf(p, port)
		return ok && p.Outgoing == outgoing
	})
	must(t, err)
	inner, _ = tcpOf(p, port)
	return inner, p.CsumPartial
}

// mssOf returns the MSS of a packet, and fails the test unless its checksum is right.
func mssOf(t testing.TB, p packet.IPv4, partial bool) uint16 {
	t.Helper()
	tcp, pseudo := packet.TCP(p.Payload()), packet.PseudoHeaderSum(p)
	if partial && tcp.Checksum() != pseudo || !partial && packet.Sum(tcp, pseudo) != 0xffff {
		t.Errorf("wrong checksum, partial %v: % x", partial, p)
	}
	mss, _ := tcp.MSS()
	return mss
}

// SYNs of both directions are clamped at both ends, and nothing else of them changes; with and
// without what the kernel leaves to the tunnel, and with a checksum that the other end's
// kernel left to hardware.
func TestClampMSS(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	const limit = 1500 - 20 - 40
	for name, noOffload := range map[string]bool{"offload": false, "no offload": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, func(c *tunnel.Config) { c.ClampMSS, c.NoOffload = tunnel.ClampAuto, noOffload })
			port := uint16(1000)
			for _, end := range n.directions() {
				near, far := end[0], end[1]
				router, dev := n.r1, "a0"
				if near == n.b {
					router, dev = n.r2, "b0"
				}
				wire, link := capture(t, router, dev), capture(t, near.host, "tun01")
				for _, c := range []struct {
					name string
					opening
					want uint16
				}{
					{"SYN", opening{flags: packet.TCPSyn, options: linuxOptions(1460)}, limit},
					{"SYN and ACK", opening{flags: packet.TCPSyn | packet.TCPAck, options: linuxOptions(9000)}, limit},
					{"with options of IP", opening{flags: packet.TCPSyn, options: linuxOptions(1460), ipOptions: []byte{0x94, 4, 0, 0, 1, 1, 1, 0}}, limit},
					{"with data", opening{flags: packet.TCPSyn, options: linuxOptions(1460), data: 301}, limit},
					{"at an odd place", opening{flags: packet.TCPSyn, options: []byte{1, 2, 4, 0x23, 0x28, 0, 0, 0}}, limit},
					{"small already", opening{flags: packet.TCPSyn, options: linuxOptions(536)}, 536},
					{"no SYN", opening{flags: packet.TCPAck, options: linuxOptions(1460)}, 1460},
					{"no MSS", opening{flags: packet.TCPSyn}, 0},
				} {
					for _, way := range []struct {
						name             string
						inwards, partial bool
					}{{"out", false, false}, {"in", true, false}, {"in, unfinished", true, true}} {
						port++
						o := c.opening
						o.port, o.partial = port, way.partial
						var got packet.IPv4
						var partial bool
						if way.inwards {
							o.src, o.dst = far.inner, near.inner
							inject(t, router, "", far.wrap(near, o.bytes()))
							got, partial = tcpFrom(t, link, port, false)
						} else {
							o.src, o.dst = near.inner, far.inner
							inject(t, near.host, "tun01", o.bytes())
							got, partial = tcpFrom(t, wire, port, false)
						}
						if mss := mssOf(t, got, partial); mss != c.want || partial != (way.partial && !noOffload) {
							t.Errorf("%s, %s, %s: the MSS is %d, want %d; unfinished %v", near.host.Name, c.name, way.name, mss, c.want, partial)
						}
						o.partial = partial
						if want := o.withMSS(c.want); !bytes.Equal(got, want) {
							t.Errorf("%s, %s, %s: got\n% x, want\n% x", near.host.Name, c.name, way.name, got, want)
						}
					}
				}
			}
			n.balance(t)
		})
	}
}

// becomes returns when a's SYNs with an MSS of 9000 leave with another one.
func (n *network) becomes(t testing.TB, wire *netlab.Capture, port *uint16, want uint16) {
	t.Helper()
	var got uint16
	defer func() {
		if t.Failed() {
			t.Logf("the MSS is %d, want %d", got, want)
		}
	}()
	labtest.WaitFor(t, fmt.Sprintf("SYNs to be clamped to %d", want), func() bool {
		*port++
		inject(t, n.a.host, "tun01", opening{
			src: n.a.inner, dst: n.b.inner, port: *port, flags: packet.TCPSyn, options: linuxOptions(9000),
		}.bytes())
		p, partial := tcpFrom(t, wire, *port, false)
		got = mssOf(t, p, partial)
		return got == want && min(9000, cmp.Or(n.a.tunnel.State().MaxMSS, 9000)) == int(want)
	})
}

// The limit follows the path and the link, while packets pass, and a change of the setting.
func TestClampMSS_Follows(t *testing.T) {
	t.Parallel()
	n := across(t)
	must(t, n.a.host.Sysctl("net.ipv4.route.mtu_expires", "1"))
	n.start(t, clampAuto)
	wire, port := capture(t, n.r1, "a0"), uint16(1000)
	n.becomes(t, wire, &port, 1440)
	n.shrink(t, 1400)
	p := newProber(t, n.a, n.b)
	p.learns(t, 1480, 1380)
	n.becomes(t, wire, &port, 1340)
	n.shrink(t, 1500)
	n.grows(t, p)
	n.becomes(t, wire, &port, 1440)
	must(t, n.a.host.SetMTU("tun01", 1000))
	n.becomes(t, wire, &port, 960)
	must(t, n.a.host.SetMTU("tun01", 9000))
	n.becomes(t, wire, &port, 1440) // the path's
	for _, c := range []struct {
		clamp tunnel.ClampMSS
		want  uint16
	}{{1200, 1200}, {tunnel.ClampOff, 9000}, {536, 536}, {65475, 9000}, {tunnel.ClampAuto, 1440}} {
		cfg := config(n.a, n.b)
		cfg.ClampMSS = c.clamp
		must(t, n.a.host.Do(func() error { return n.a.tunnel.Change(cfg) }))
		n.becomes(t, wire, &port, c.want)
	}
	n.balance(t)
}

// The engine has the SYNs, and the kernel carries the rest of the connections by itself.
func TestFast_ClampMSS(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	const limit = 1000
	n := fastNetwork(t, func(c *tunnel.Config) { c.Fast, c.ClampMSS = tunnel.FastAuto, limit })
	engine := func(s *site) (packets uint64) { // in both directions
		all := s.tunnel.Stats()
		sent, received := s.carried()
		return all.TX.Packets - sent + all.RX.Packets - received
	}
	a, b := engine(n.a), engine(n.b)
	for _, end := range n.directions() {
		wire := capture(t, n.r1, "a0")
		a, b = a+2, b+2 // a SYN each way
		before, _ := end[0].carried()
		var l net.Listener
		var client net.Conn
		must(t,
			end[1].host.Do(func() (err error) {
				l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(end[1].inner, 0)))
				return err
			}),
			end[0].host.Do(func() (err error) {
				client, err = net.Dial("tcp4", l.Addr().String())
				return err
			}))
		defer l.Close()
		defer client.Close()
		server, err := l.Accept()
		must(t, err)
		defer server.Close()
		for _, c := range []net.Conn{client, server} {
			port := uint16(c.LocalAddr().(*net.TCPAddr).Port)
			p, err := wire.Wait(labtest.Context(t), func(p netlab.Captured) bool { _, ok := tcpOf(p, port); return ok })
			must(t, err)
			first, _ := tcpOf(p, port)
			if got := mssOf(t, first, p.CsumPartial); got != limit || !first.HasSYN() {
				t.Errorf("from %s: SYN %v, with an MSS of %d", c.LocalAddr(), first.HasSYN(), got)
			}
		}
		if got := maxSegment(t, client); got > limit {
			t.Errorf("segments of %d bytes", got)
		}
		const rounds = 50
		buf := make([]byte, 3000)
		for range rounds {
			_, err := client.Write(buf)
			must(t, err)
			for n := 0; n < len(buf); {
				got, err := server.Read(buf[n:])
				must(t, err)
				n += got
			}
		}
		if now, _ := end[0].carried(); now < before+rounds {
			t.Errorf("the kernel has sent %d packets by itself", now-before)
		}
		labtest.WaitFor(t, "the engines to have carried the SYNs, and nothing else", func() bool {
			return engine(n.a) == a && engine(n.b) == b
		})
		must(t, wire.Close())
	}
	n.balance(t)
}

// maxSegment returns the length of the segments that a connection sends, in bytes.
func maxSegment(t testing.TB, c net.Conn) (n int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err, raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }), err)
	return n
}

// A SYN is the same, byte by byte, as netfilter makes it that clamps to the path MTU, but for
// these: without an MSS it gets none, as by nft, but not by iptables; and with one at an odd
// place its checksum is right.
func TestClampMSS_LikeNetfilter(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "nft", "iptables-legacy")
	n := across(t)
	n.start(t, clampAuto)
	wire, port := capture(t, n.r1, "a0"), uint16(1000)
	for name, c := range map[string]struct {
		command string
		adds    bool // an MSS where there is none
	}{
		"nft": {command: "nft add table ip t\nnft add chain ip t c { type filter hook output priority 0 ; }\n" +
			"nft add rule ip t c tcp flags syn tcp option maxseg size set rt mtu"},
		"iptables": {command: "iptables-legacy -t mangle -A OUTPUT -p tcp --tcp-flags SYN SYN -j TCPMSS --clamp-mss-to-pmtu", adds: true},
	} {
		filtered := newSite(addHost(t, n.lab, name), "172.56.1.101", "172.56.1.101")
		far := addHost(t, n.lab, name+"-far")
		must(t,
			n.lab.Veth(filtered.host, "eth0", far, "eth0"),
			filtered.host.AddAddr("eth0", "172.56.1.101/16"),
			far.AddAddr("eth0", "172.56.2.101/16"),
			filtered.host.SetMTU("eth0", 1480),
		)
		types(t, filtered.host, c.command)
		eth0 := capture(t, far, "eth0")
		for _, o := range []opening{
			{flags: packet.TCPSyn, options: linuxOptions(1460)},
			{flags: packet.TCPSyn | packet.TCPAck, options: linuxOptions(65535)},
			{flags: packet.TCPSyn | packet.TCPEce | packet.TCPCwr, options: linuxOptions(1441)},
			{flags: packet.TCPSyn, options: linuxOptions(1440)},
			{flags: packet.TCPSyn, options: linuxOptions(536)},
			{flags: packet.TCPSyn, options: linuxOptions(0)},
			{flags: packet.TCPAck, options: linuxOptions(1460)},
			{flags: packet.TCPSyn, options: []byte{4, 2, 3, 3, 7, 1, 2, 4, 0x23, 0x28, 0, 0}},
			{flags: packet.TCPSyn, options: []byte{2, 4, 0x23, 0x28, 2, 4, 0x23, 0x29}},
			{flags: packet.TCPSyn, options: linuxOptions(1460), data: 7},
			{flags: packet.TCPSyn, options: linuxOptions(1460), ipOptions: []byte{0x94, 4, 0, 0}},
			{flags: packet.TCPSyn, options: []byte{3, 3, 7, 0}},
			{flags: packet.TCPSyn},
			{flags: packet.TCPSyn, options: []byte{1, 2, 4, 0x23, 0x28, 0, 0, 0}},
		} {
			port++
			o.src, o.dst, o.port = n.a.inner, n.b.inner, port
			_, at := packet.TCP(o.bytes().Payload()).MSS()
			inject(t, n.a.host, "tun01", o.bytes())
			inject(t, filtered.host, "eth0", o.bytes())
			got, _ := tcpFrom(t, wire, port, false)
			want, _ := tcpFrom(t, eth0, port, false)
			mssOf(t, got, false)
			if at == 0 && c.adds {
				want = o.bytes()
			} else if at%2 != 0 {
				want = bytes.Clone(want)
				packet.TCP(want.Payload()).SetChecksum(packet.TCP(got.Payload()).Checksum())
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s:\n% x became\n% x, by netfilter\n% x", name, o.bytes(), got, want)
			}
		}
	}
}
