package netlab_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// Of a flood, and of the packets that must pass meanwhile.
const (
	flooders    = 4
	floodTime   = 300 * time.Millisecond
	floodRounds = 5
	steadyRate  = 2000 // packets a second
	settleTime  = 50 * time.Millisecond
)

// floodLab is a tunnel's end under test, at ns01. The router is the attacker. The other end needs no goipip: a generator
// sends what would come from there.
type floodLab struct {
	*tunnelLab
	tun01  *background
	arrive *net.UDPConn // what passes the tunnel
	buf    []byte
}

func newFloodLab(t testing.TB, options ...string) *floodLab {
	t.Helper()
	l := &floodLab{tunnelLab: newTunnelLab(t), buf: make([]byte, 2000)}
	l.tun01 = l.end01.start(t, options...)
	discards(t, l.ns01, l.end01.local)
	l.arrive = numbered(t, l.ns01, l.end01.inner)
	generator{Packets: l.end02.outerDatagrams(8, 100), Number: outerNumber, Rate: steadyRate}.start(t, l.ns02)
	return l
}

// numbered opens a socket for a generator's datagrams, with room for many.
func numbered(t testing.TB, host *netlab.Host, addr string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := host.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr), Port: discardPort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	force(t, conn, 64<<20)
	return conn
}

// force sets the size of a socket's receive buffer.
func force(t testing.TB, conn *net.UDPConn, size int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size); err != nil {
			conn.SetReadBuffer(size)
		}
	})
}

// discards opens a socket that takes datagrams and keeps none.
func discards(t testing.TB, host *netlab.Host, addr string) {
	t.Helper()
	conn := numbered(t, host, addr)
	none, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ipv4.NewPacketConn(conn).SetBPF(none); err != nil {
		t.Fatal(err)
	}
}

// unreachable returns an ICMP error from the router about a packet of tun01.
func (l *tunnelLab) unreachable(code uint8) []byte {
	quoted := l.end01.outerDatagrams(1, 100)[0][:2*packet.IPv4HdrLen+8]
	message := packet.ICMP(append(make([]byte, 8), quoted...))
	message.InitError(packet.ICMPUnreachable, code, 0)
	binary.BigEndian.PutUint16(message[2:], 0)
	binary.BigEndian.PutUint16(message[2:], ^packet.Sum(message, 0))
	return ipPacket(packet.ProtoICMP, "192.168.6.1", l.end01.local, message)
}

// flood starts generators of one packet on the router, at some packets a second together or as many as they can, which
// send while they are resumed.
func (l *floodLab) flood(t testing.TB, p []byte, rate float64) (f flooding) {
	t.Helper()
	for range flooders {
		b := generator{Packets: [][]byte{p}, Rate: rate / flooders}.start(t, l.router)
		b.pause(t)
		f = append(f, b)
	}
	return f
}

type flooding []*background

func (f flooding) resume(t testing.TB) {
	t.Helper()
	for _, b := range f {
		b.resume(t)
	}
}

func (f flooding) pause(t testing.TB) {
	t.Helper()
	for _, b := range f {
		b.pause(t)
	}
}

// passage is how the steady packets fared during a flood.
type passage struct {
	loss  float64       // of them, in percent
	gap   time.Duration // the longest without one
	flood float64       // other packets a second
}

func (p passage) String() string {
	return fmt.Sprintf("%.2f %% lost, gap %v, flood of %.0f/s", p.loss, p.gap.Round(time.Millisecond), p.flood)
}

// suffers has a flood come for a while. What is late, and not lost, may arrive after it.
func (l *floodLab) suffers(t testing.TB, f flooding) (p passage) {
	t.Helper()
	for until := time.Now().Add(settleTime); time.Now().Before(until); {
		l.next(t)
	}
	first := l.next(t)
	packets := received(t, l.ns01, "veth01")
	f.resume(t)
	start := time.Now()
	last, seen := first, map[uint64]bool{}
	take := func() time.Time {
		number := l.next(t)
		if seen[number] {
			t.Errorf("packet %d arrives twice", number)
		}
		if number > first { // not one of another flow that was overtaken
			seen[number], last = true, max(last, number)
		}
		return time.Now()
	}
	for latest, until := start, start.Add(floodTime); latest.Before(until); {
		now := take()
		p.gap, latest = max(p.gap, now.Sub(latest)), now
	}
	packets = received(t, l.ns01, "veth01") - packets
	p.flood = float64(packets)/time.Since(start).Seconds() - steadyRate
	f.pause(t)
	for until := time.Now().Add(settleTime); take().Before(until); {
	}
	p.loss = 100 * (1 - float64(len(seen))/float64(last-first))
	return p
}

// next returns the number of the next packet to arrive.
func (l *floodLab) next(t testing.TB) uint64 {
	t.Helper()
	l.arrive.SetReadDeadline(time.Now().Add(answerTime))
	n, err := l.arrive.Read(l.buf)
	if err != nil || n < 8 {
		t.Fatalf("no packet passes: %d bytes, %v", n, err)
	}
	return binary.BigEndian.Uint64(l.buf)
}

// received is how many packets a device of host has received.
func received(t testing.TB, host *netlab.Host, dev string) uint64 {
	t.Helper()
	link, err := host.Netlink().LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.RxPackets
}

// compared is how packets fare during floods of ICMP errors, and of as many datagrams to a socket that wants none, in turns.
// Each flood has a tunnel of its own, so that nothing of one stays for the other.
type compared struct {
	errors, datagrams       *floodLab
	errorFlood, plainFlood  flooding
	underErrors, underPlain []passage
}

func newCompared(t testing.TB, code uint8, options ...string) *compared {
	t.Helper()
	c := &compared{errors: newFloodLab(t, options...), datagrams: newFloodLab(t, options...)}
	c.errorFlood = c.errors.flood(t, c.errors.unreachable(code), 0)
	rate := c.errors.suffers(t, c.errorFlood).flood
	p := ipPacket(unix.IPPROTO_UDP, "192.168.6.1", c.datagrams.end01.local, datagram(1, len(c.errors.unreachable(code))-28))
	c.plainFlood = c.datagrams.flood(t, p, rate)
	return c
}

func (c *compared) round(t testing.TB) {
	t.Helper()
	c.underPlain = append(c.underPlain, c.datagrams.suffers(t, c.plainFlood))
	c.underErrors = append(c.underErrors, c.errors.suffers(t, c.errorFlood))
}

// median returns the medians of some passages.
func median(passages []passage) passage {
	of := func(value func(passage) float64) float64 {
		var all []float64
		for _, p := range passages {
			all = append(all, value(p))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	return passage{
		loss:  of(func(p passage) float64 { return p.loss }),
		gap:   time.Duration(of(func(p passage) float64 { return float64(p.gap) })),
		flood: of(func(p passage) float64 { return p.flood }),
	}
}

// floods are of codes of ICMP 3, which the kernel takes for passing (1) or for final (2), with options of goipip.
var floods = []struct {
	code    uint8
	options string
}{
	{1, ""},
	{2, "--queues 4"},
	{1, "--icmp rfc2003 --offload off"},
}

// ICMP errors, from wherever they come and however many, cost no more packets than as many datagrams would that are none
// of the tunnel's business.
func TestHazard2_ErrorFlood(t *testing.T) {
	labtest.Long(t)
	const points, late = 5, 200 * time.Millisecond
	for _, f := range floods {
		t.Run(fmt.Sprintf("code %d, options %s", f.code, f.options), func(t *testing.T) {
			c := newCompared(t, f.code, strings.Fields(f.options)...)
			for range floodRounds {
				c.round(t)
			}
			errors, plain := median(c.underErrors), median(c.underPlain)
			t.Logf("ICMP errors: %v", errors)
			t.Logf("datagrams:   %v", plain)
			if errors.loss > plain.loss+points {
				t.Errorf("%.1f %% of the packets are lost among ICMP errors, %.1f %% among datagrams", errors.loss, plain.loss)
			}
			if errors.gap > plain.gap+late {
				t.Errorf("no packet for %v among ICMP errors, and for %v among datagrams", errors.gap, plain.gap)
			}
			c.errors.tun01.hasNoComplaint(t)
		})
	}
}

func TestHazard2_EndsDuringFlood(t *testing.T) {
	for _, f := range floods {
		endsInTime(t, func(t *testing.T) time.Duration {
			l := newFloodLab(t, strings.Fields(f.options)...)
			l.flood(t, l.unreachable(f.code), 0).resume(t)
			l.suffers(t, nil)
			return l.tun01.exits(t, l.end01, func() error { return l.tun01.Signal(unix.SIGTERM) })
		})
	}
}

// BenchmarkFlood reports how packets fare during a flood of ICMP errors, and during one of as many datagrams.
func BenchmarkFlood(b *testing.B) {
	for _, f := range floods {
		b.Run(fmt.Sprintf("code=%d/options=%s", f.code, strings.ReplaceAll(f.options, " ", "_")), func(b *testing.B) {
			c := newCompared(b, f.code, strings.Fields(f.options)...)
			for b.Loop() {
				c.round(b)
			}
			for name, passages := range map[string][]passage{"icmp": c.underErrors, "udp": c.underPlain} {
				m := median(passages)
				b.ReportMetric(m.loss, name+"-%lost")
				b.ReportMetric(float64(m.gap.Milliseconds()), name+"-ms-gap")
				b.ReportMetric(m.flood, name+"-flood/s")
			}
			b.ReportMetric(0, "ns/op") // of both together
		})
	}
}
