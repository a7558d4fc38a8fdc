package netlab_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// generatorEnv makes the test binary a generator, whose JSON it holds.
const generatorEnv = "NETLAB_TEST_GENERATOR"

// generator sends IPv4 packets from a process of its own, so that it competes with what it loads as another host's
// would, and not with the test for the goroutines of one process.
type generator struct {
	Packets [][]byte // in turn, each from its IP header on
	Number  int      // where in each packet its number of 8 bytes stands; 0 for nowhere
	Rate    float64  // packets a second; 0 for as many as it can
	Count   uint64   // how many; 0 for no end
}

// generatorBatch is how many packets one system call takes.
const generatorBatch = 64

// generatorLag is what a generator makes up for if it comes late. After a longer pause it does not.
const generatorLag = 20 * time.Millisecond

// run sends, and prints how many it did.
func (g generator) run() error {
	conn, err := net.ListenPacket("ip4:255", "0.0.0.0") // IPPROTO_RAW: packets bring their IP header
	if err != nil {
		return err
	}
	defer conn.Close()
	batch := make([]ipv4.Message, generatorBatch)
	for i := range batch {
		batch[i].Buffers = [][]byte{nil}
		batch[i].Addr = &net.IPAddr{IP: g.Packets[0][16:20]}
	}
	var sent uint64
	for due := time.Now(); g.Count == 0 || sent < g.Count; {
		n := generatorBatch
		if g.Rate > 0 {
			late := time.Since(due)
			if late > generatorLag {
				due, late = time.Now().Add(-generatorLag), generatorLag
			}
			n = min(n, int(late.Seconds()*g.Rate))
		}
		if g.Count > 0 {
			n = int(min(uint64(n), g.Count-sent))
		}
		if n == 0 {
			ts := unix.NsecToTimespec(int64(100 * time.Microsecond)) // time.Sleep rounds up to a millisecond
			_ = unix.Nanosleep(&ts, nil)
			continue
		}
		for i := range batch[:n] {
			p := g.Packets[(sent+uint64(i))%uint64(len(g.Packets))]
			if g.Number > 0 {
				p = append(batch[i].Buffers[0][:0], p...)
				binary.BigEndian.PutUint64(p[g.Number:], sent+uint64(i))
			}
			batch[i].Buffers[0] = p
		}
		if n, err = ipv4.NewPacketConn(conn).WriteBatch(batch[:n], 0); err != nil && g.Count > 0 {
			return err
		} else if err != nil {
			time.Sleep(time.Millisecond) // There may be a route later.
			continue
		}
		sent += uint64(n)
		if g.Rate > 0 {
			due = due.Add(time.Duration(float64(n) / g.Rate * 1e9))
		}
	}
	fmt.Println("sent", sent)
	return nil
}

// generate is what the test binary does in place of tests where generatorEnv is set.
func generate() {
	var g generator
	err := json.Unmarshal([]byte(os.Getenv(generatorEnv)), &g)
	if err == nil {
		err = g.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// start starts a generator on host.
func (g generator) start(t testing.TB, host *netlab.Host) *background {
	t.Helper()
	text, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), generatorEnv+"="+string(text), "GOMAXPROCS=1")
	b := start(t, host, cmd)
	b.resumesAtEnd(t)
	return b
}

// finishes waits until a generator of a counted number has sent it.
func (b *background) finishes(t testing.TB) {
	t.Helper()
	if err := b.Wait(labtest.Context(t)); err != nil || !strings.HasPrefix(b.out.String(), "sent ") {
		t.Fatalf("%v: %v: %s", b, err, &b.out)
	}
}

// resumesAtEnd has a process that may be stopped then go on, so that it can end.
func (b *background) resumesAtEnd(t testing.TB) {
	t.Cleanup(func() { b.Signal(unix.SIGCONT) }) // It fails if the process has ended.
}

// pause stops a process, and returns when all its threads have stopped.
func (b *background) pause(t testing.TB) {
	t.Helper()
	b.resumesAtEnd(t)
	if err := b.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, b.String()+" to stop", func() bool {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", b.Pid()))
		for _, task := range tasks {
			text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", b.Pid(), task.Name()))
			if readErr != nil || !strings.Contains(string(text), "\nState:\tT") {
				return false
			}
		}
		return err == nil
	})
}

// resume undoes pause.
func (b *background) resume(t testing.TB) {
	t.Helper()
	if err := b.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// ipPacket returns a packet, from one address to another.
func ipPacket(proto uint8, src, dst string, payload []byte) packet.IPv4 {
	p := packet.IPv4(make([]byte, packet.IPv4HdrLen, packet.IPv4HdrLen+len(payload)))
	p.InitHeader()
	p.SetTotalLength(packet.IPv4HdrLen + len(payload))
	p.SetTTL(64)
	p.SetProtocol(proto)
	p.SetSource(netip.MustParseAddr(src).As4())
	p.SetDestination(netip.MustParseAddr(dst).As4())
	p.UpdateChecksum()
	return append(p, payload...)
}

// discardPort is that of datagrams that nobody needs (RFC 863).
const discardPort = 9

// datagram returns one of n bytes to discardPort, with its header and without a checksum.
func datagram(port uint16, n int) []byte {
	b := make([]byte, packet.UDPHdrLen+n)
	binary.BigEndian.PutUint16(b, port)
	binary.BigEndian.PutUint16(b[2:], discardPort)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return b
}

// outerNumber and innerNumber are where generator.Number belongs in a datagram, with and without a tunnel around it.
const (
	innerNumber = packet.IPv4HdrLen + packet.UDPHdrLen
	outerNumber = packet.IPv4HdrLen + innerNumber
)

// innerDatagrams returns datagrams from e's inner address to that of the other end, in so many flows.
func (e end) innerDatagrams(flows, n int) (packets [][]byte) {
	for i := range flows {
		packets = append(packets, ipPacket(unix.IPPROTO_UDP, e.inner, e.peer, datagram(uint16(1000+i), n)))
	}
	return packets
}

// outerDatagrams returns the same as the other end would get them.
func (e end) outerDatagrams(flows, n int) (packets [][]byte) {
	for _, p := range e.innerDatagrams(flows, n) {
		packets = append(packets, ipPacket(unix.IPPROTO_IPIP, e.local, e.remote, p))
	}
	return packets
}
