package tun_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

// Two ends of a tunnel: ours has a device, the other one is this test.
var (
	here  = netip.MustParseAddr("172.66.1.101")
	there = netip.MustParseAddr("172.66.2.101")
)

// link is the configuration of most devices in tests.
var link = tun.Link{
	MTU:     1480,
	Remote:  netip.MustParseAddr("192.168.1.129"),
	Address: netip.PrefixFrom(here, 32),
	Peer:    there,
}

// host is a network namespace for devices.
type host struct {
	*netlab.Host
	tun *tun.Host
}

// newHost returns a host in a lab of its own.
func newHost(t *testing.T) *host {
	t.Helper()
	labtest.Need(t, "root", "tun")
	return addHost(t, labtest.New(t), "host")
}

func addHost(t *testing.T, lab *netlab.Lab, name string) *host {
	t.Helper()
	h, err := lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return &host{h, newTunHost(t, h)}
}

func newTunHost(t *testing.T, h *netlab.Host) (th *tun.Host) {
	t.Helper()
	if err := h.Do(func() (err error) {
		th, err = tun.NewHost()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(th.Close)
	return th
}

// open opens a device on h, and closes it when the test ends.
func open(t *testing.T, h *host, cfg tun.Config) *tun.Device {
	t.Helper()
	var d *tun.Device
	err := h.Do(func() (err error) {
		d, err = h.tun.Open(cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	endAfter(t, func() { d.Close() })
	return d
}

// openUp opens a device on h that is up and has an address.
func openUp(t *testing.T, h *host, cfg tun.Config) *tun.Device {
	t.Helper()
	d := open(t, h, cfg)
	setup(t, d, link)
	return d
}

func setup(t *testing.T, d *tun.Device, l tun.Link) {
	t.Helper()
	if err := d.Setup(l); err != nil {
		t.Fatal(err)
	}
}

// linkNames returns the names of all links on h.
func linkNames(t *testing.T, h *host) []string {
	t.Helper()
	links, err := h.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func hasLink(t *testing.T, h *host, name string) bool {
	t.Helper()
	return slices.Contains(linkNames(t, h), name)
}

// read reads a queue into an empty buffer, as soon as there is something or an error.
func read(r *tun.Reader, q *tun.Queue) ([]tun.Packet, error) {
	r.Reset()
	for {
		if packets, err := r.Read(q); len(packets) > 0 || err != nil {
			return packets, err
		}
		waitReadable(q)
	}
}

// waitReadable waits until a queue is readable, has an error, or is closed.
func waitReadable(q *tun.Queue) {
	for {
		fd, ok := q.FD().Acquire()
		if !ok {
			return
		}
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(fds[:], 1) // in ms; Close waits for Release
		q.FD().Release()
		if n > 0 {
			return
		}
	}
}

// waitParked waits until n goroutines wait in waitReadable.
func waitParked(t *testing.T, n int) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	labtest.WaitFor(t, "goroutines in waitReadable", func() bool {
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "tun_test.waitReadable(") == n
	})
}

// write writes one packet with a Writer of its own.
func write(q *tun.Queue, hdr packet.VNetHdr, parts [][]byte) error {
	return tun.NewWriter().Write(q, hdr, parts)
}

// reading is a queue that a goroutine reads until an error.
type reading struct {
	packets chan tun.Packet // copies
	err     chan error      // the error that ended it
}

// startReading reads a queue in the background until an error.
func startReading(q *tun.Queue) *reading {
	r := &reading{packets: make(chan tun.Packet, 1<<14), err: make(chan error, 1)}
	go func() {
		reader := tun.NewReader()
		for {
			packets, err := read(reader, q)
			for _, p := range packets {
				r.packets <- tun.Packet{Bytes: bytes.Clone(p.Bytes), VNet: p.VNet}
			}
			if err != nil {
				r.err <- err
				return
			}
		}
	}()
	return r
}

// next returns the next packet.
func (r *reading) next(t *testing.T) tun.Packet {
	t.Helper()
	select {
	case p := <-r.packets:
		return p
	case err := <-r.err:
		t.Fatalf("Read: %v, want a packet", err)
	case <-time.After(deadline):
		t.Fatalf("no packet in %v", deadline)
	}
	panic("not reached")
}

// end returns the error that ended the reading.
func (r *reading) end(t *testing.T) error {
	t.Helper()
	return labtest.Within(t, "the end of Read", r.err)
}

const (
	// deadline bounds the wait for something that should happen at once.
	deadline = 10 * time.Second
	// testTimeout bounds a whole test.
	testTimeout = time.Minute
)

// endAfter calls end after testTimeout: closing a descriptor ends a test that hangs in
// reading it.
func endAfter(t testing.TB, end func()) {
	timer := time.AfterFunc(testTimeout, end)
	t.Cleanup(func() { timer.Stop() })
}

// datagram builds a UDP packet with correct checksums, independently of goipip's code.
func datagram(t testing.TB, from, to netip.AddrPort, payload string) packet.IPv4 {
	t.Helper()
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP,
		SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(),
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// udpPayload returns the payload of a UDP packet, "" for another packet.
func udpPayload(p packet.IPv4) string {
	if !p.Valid() || p.Protocol() != packet.ProtoUDP {
		return ""
	}
	return string(p.Payload()[packet.UDPHdrLen:])
}

// listen opens a UDP socket on h.
func listen(t *testing.T, h *host, a netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return c
}

func localAddr(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// far is the other end's UDP port.
var far = netip.AddrPortFrom(there, 7)

// send sends a UDP payload from c into the device.
func send(t *testing.T, c *net.UDPConn, payload string) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(payload), far); err != nil {
		t.Fatal(err)
	}
}

// checkReceived fails unless the next payload that c receives is want.
func checkReceived(t *testing.T, c *net.UDPConn, want string) {
	t.Helper()
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("waiting for %q: %v", want, err)
	}
	if got := string(buf[:n]); got != want {
		t.Fatalf("received %q, want %q", got, want)
	}
}

// checkTraffic fails unless a packet passes each way between q and the UDP
// socket c on the device's host.
func checkTraffic(t *testing.T, q *tun.Queue, r *reading, c *net.UDPConn) {
	t.Helper()
	const out, in = "from the host", "to the host"
	send(t, c, out)
	if got := udpPayload(r.next(t).Bytes); got != out {
		t.Fatalf("read %q, want %q", got, out)
	}
	p := datagram(t, far, localAddr(c), in)
	if err := write(q, packet.VNetHdr{}, [][]byte{p}); err != nil {
		t.Fatal(err)
	}
	checkReceived(t, c, in)
}

// socketpair returns a queue's end and a test's end of a pair of sockets that preserve
// message boundaries, as a TUN does. Both are non-blocking.
func socketpair(t testing.TB) (queue *os.File, test int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	queue = os.NewFile(uintptr(fds[0]), "queue")
	t.Cleanup(func() {
		queue.Close()
		unix.Close(fds[1])
	})
	endAfter(t, func() { queue.Close() })
	return queue, fds[1]
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
