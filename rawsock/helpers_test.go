package rawsock_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// Two hosts on one cable, and what one end of a tunnel between them is told.
var (
	leftAddr  = netip.MustParseAddr("10.0.0.1")
	rightAddr = netip.MustParseAddr("10.0.0.2")

	leftEnd  = config{Local: leftAddr, Remote: rightAddr}
	rightEnd = config{Local: rightAddr, Remote: leftAddr}
)

// config is one end of a tunnel.
type config struct {
	Local, Remote netip.Addr
	Device        int // index of the only one that packets may leave by, or 0
	TOS           uint8
	Mark          uint32
}

func (c config) pair() rawsock.Pair { return rawsock.Pair{Local: c.Local, Remote: c.Remote} }

// route is the Route for a sender that is bound to c.Local.
func (c config) route() rawsock.Route {
	r := rawsock.Route{Remote: c.Remote, Device: c.Device, TOS: c.TOS, Mark: c.Mark}
	if c.Device != 0 {
		r.Local = c.Local
	}
	return r
}

// receiver is a Receiver of one pair, until more are added.
type receiver struct {
	*rawsock.Receiver
	cfg config
}

func (r *receiver) Connect() error { return r.Receiver.Connect(r.cfg.route()) }

// drops returns all that r knows of.
func (r *receiver) drops() uint64 { return r.PairDrops(r.cfg.pair()) + r.Drops() }

// newPair returns two hosts that know each other's link-layer address: each has
// a device eth0.
func newPair(t testing.TB) (left, right *netlab.Host) {
	t.Helper()
	return newPairIn(t, labtest.New(t))
}

// newPairIn makes them in a lab that is to have more.
func newPairIn(t testing.TB, lab *netlab.Lab) (left, right *netlab.Host) {
	t.Helper()
	left, right = addHost(t, lab, "left"), addHost(t, lab, "right")
	must(t,
		lab.Veth(left, "eth0", right, "eth0"),
		left.AddAddr("eth0", leftAddr.String()+"/24"),
		right.AddAddr("eth0", rightAddr.String()+"/24"),
	)
	ping(t, left, rightAddr)
	return left, right
}

func addHost(t testing.TB, lab *netlab.Lab, name string) *netlab.Host {
	t.Helper()
	h, err := lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// ping fills the neighbour tables of both ends: until then the kernel holds
// packets back, and not many.
func ping(t testing.TB, from *netlab.Host, to netip.Addr) {
	t.Helper()
	if r, err := from.Ping(labtest.Context(t), to, netlab.PingOptions{}); err != nil || r.Received == 0 {
		t.Fatalf("no ping from %s to %v: %v", from.Name, to, err)
	}
}

// must ends the test with the first of some errors.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// newReceiver opens a receiver of one pair on h, and closes it when the test ends.
func newReceiver(t testing.TB, h *netlab.Host, cfg config) *receiver {
	t.Helper()
	return newShareReceiver(t, h, cfg, 0, 1)
}

// newShareReceiver does the same for one of several.
func newShareReceiver(t testing.TB, h *netlab.Host, cfg config, share, shares int) *receiver {
	t.Helper()
	r := &receiver{cfg: cfg}
	must(t, h.Do(func() (err error) {
		r.Receiver, err = rawsock.NewReceiver(share, shares)
		return err
	}))
	must(t, r.Add(cfg.pair()))
	t.Cleanup(func() { r.Close() })
	// What hangs in Receive fails there.
	timer := time.AfterFunc(testTimeout, func() { r.Close() })
	t.Cleanup(func() { timer.Stop() })
	return r
}

// newConnected does the same, with only its remote's packets.
func newConnected(t testing.TB, h *netlab.Host, cfg config) *receiver {
	t.Helper()
	r := newReceiver(t, h, cfg)
	must(t, r.Connect())
	return r
}

// needBuffers skips a test whose packets are more than an ordinary socket buffer
// holds, where the kernel refuses larger ones.
func needBuffers(t *testing.T, h *netlab.Host) {
	t.Helper()
	must(t, h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20); err != nil {
			t.Skipf("needs CAP_NET_ADMIN in the first user namespace: SO_RCVBUFFORCE: %v", err)
		}
		return nil
	}))
}

// refusal is what a sender was told about a packet.
type refusal struct {
	Index int
	Why   stats.Reason
}

// sender is a Sender with one Target and a list of all refusals.
type sender struct {
	*rawsock.Sender
	cfg      config
	to       *rawsock.Target
	refusals []refusal
}

func (s *sender) Add(header, payload []byte) { s.Sender.Add(s.to, header, payload) }

// setHop has packets leave for a hop, or with nil by the raw socket.
func (s *sender) setHop(hop *rawsock.Hop) {
	route := s.cfg.route()
	route.Hop = hop
	s.to.Set(route)
}

// setDevice has packets leave by the device of an index.
func (s *sender) setDevice(index int) {
	s.cfg.Device = index
	s.to.Set(s.cfg.route())
}

func newSender(t testing.TB, h *netlab.Host, cfg config) *sender {
	t.Helper()
	s := &sender{cfg: cfg, to: new(rawsock.Target)}
	s.to.Set(cfg.route())
	must(t, h.Do(func() (err error) {
		s.Sender, err = rawsock.NewSender(cfg.Local, func(i int, why stats.Reason) {
			s.refusals = append(s.refusals, refusal{i, why})
		})
		return err
	}))
	t.Cleanup(func() { s.Close() })
	return s
}

// send sends payloads in one batch.
func (s *sender) send(t *testing.T, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		s.Add(outer(s.cfg, len(p)), []byte(p))
	}
	must(t, s.Flush())
}

// mustSend sends payloads in one batch, of which the kernel must take each.
func (s *sender) mustSend(t *testing.T, payloads ...string) {
	t.Helper()
	s.send(t, payloads...)
	if len(s.refusals) > 0 {
		t.Fatalf("refused: %+v", s.refusals)
	}
}

// outer returns a header for n bytes between the ends of cfg, complete but for
// the ID.
func outer(cfg config, n int) packet.IPv4 {
	p := make(packet.IPv4, packet.IPv4HdrLen)
	p.InitHeader()
	p.SetTotalLength(packet.IPv4HdrLen + n)
	p.SetDF(true)
	p.SetTTL(64)
	p.SetProtocol(packet.ProtoIPIP)
	p.SetSource(cfg.Local.As4())
	p.SetDestination(cfg.Remote.As4())
	p.UpdateChecksum()
	return p
}

// receiving is a receiver that is read to its end.
type receiving struct {
	packets chan packet.IPv4 // copies
	err     chan error       // what ended it
}

// startReceiving begins to read r, in the background and without end.
func startReceiving(r *receiver) *receiving {
	g := &receiving{packets: make(chan packet.IPv4, 1<<14), err: make(chan error, 1)}
	go func() {
		for {
			packets, err := r.Receive()
			for _, p := range packets {
				g.packets <- bytes.Clone(p)
			}
			if err != nil {
				g.err <- err
				return
			}
		}
	}()
	return g
}

// next returns the next packet.
func (g *receiving) next(t *testing.T) packet.IPv4 {
	t.Helper()
	select {
	case p := <-g.packets:
		return p
	case err := <-g.err:
		t.Fatalf("Receive: %v, want a packet", err)
	case <-time.After(deadline):
		t.Fatalf("no packet in %v", deadline)
	}
	panic("not reached")
}

// check fails unless the next packets have these payloads.
func (g *receiving) check(t *testing.T, payloads ...string) {
	t.Helper()
	for _, want := range payloads {
		p := g.next(t)
		if !p.Valid() || p.TotalLength() != len(p) {
			t.Fatalf("not a whole packet: % x", []byte(p))
		}
		if got := string(p.Payload()); got != want {
			t.Fatalf("received %q, want %q", abbreviate(got), abbreviate(want))
		}
	}
}

func abbreviate(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

const (
	// deadline is for what should happen at once.
	deadline = 10 * time.Second
	// testTimeout is for a whole test.
	testTimeout = time.Minute
)

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// descriptors returns this process's open descriptors.
func descriptors(t *testing.T) (fds []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		must(t, err)
		fds = append(fds, fd)
	}
	return fds
}
