package rawsock_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// reported is what an ErrorSocket reports about an ICMP error.
type reported struct {
	Type, Code uint8
	MTU        int
	Offender   string
	Inner      string
}

// newErrorSocket opens an ErrorSocket on h, and closes it when the test ends.
func newErrorSocket(t testing.TB, h *netlab.Host, cfg config) *rawsock.ErrorSocket {
	t.Helper()
	var s *rawsock.ErrorSocket
	must(t, h.Do(func() (err error) {
		s, err = rawsock.NewErrorSocket()
		return err
	}))
	pair := cfg.pair()
	must(t, s.SetPair(&pair))
	t.Cleanup(func() { s.Close() })
	// What hangs in ReadErrors fails there.
	timer := time.AfterFunc(testTimeout, func() { s.Close() })
	t.Cleanup(func() { timer.Stop() })
	return s
}

// readErrors reads s's errors in the background and without end.
func readErrors(t *testing.T, s *rawsock.ErrorSocket) <-chan reported {
	t.Helper()
	heard := make(chan reported, 1<<14)
	go func() {
		for {
			if err := s.ReadErrors(func(e rawsock.ICMPError) { heard <- newReported(e) }); err != nil {
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("ReadErrors: %v", err)
				}
				return
			}
		}
	}()
	return heard
}

func newReported(e rawsock.ICMPError) reported {
	return reported{e.Type, e.Code, e.MTU, e.Offender.String(), string(bytes.Clone(e.Inner))}
}

// report returns what is heard of an error from the right host.
func (e icmpError) report() reported {
	return reported{uint8(e.typ), uint8(e.code), int(e.mtu), rightAddr.String(), quotedInner}
}

var hostUnreachable = icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 1}

// reportedErrors are those of icmpErrors that an ErrorSocket reports.
var reportedErrors = slices.DeleteFunc(slices.Clone(icmpErrors), func(e icmpError) bool {
	return e.typ == ipv4.ICMPTypeParameterProblem
})

// An ErrorSocket reports every error, also those that no other socket gets, while
// ReadErrors waits and before it.
func TestE_ReadErrors(t *testing.T) {
	for _, e := range reportedErrors {
		t.Run(e.name, func(t *testing.T) {
			left, right := newPair(t)
			remote := newSender(t, right, rightEnd)
			received := startReceiving(newConnected(t, left, leftEnd))
			waiting := readErrors(t, newErrorSocket(t, left, leftEnd))
			busy := newErrorSocket(t, left, leftEnd)
			labtest.WaitParked(t, "rawsock.(*ErrorSocket).ReadErrors", 1)

			check := func(heard <-chan reported) {
				t.Helper()
				if diff := cmp.Diff(e.report(), labtest.Within(t, "the error", heard)); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
			}
			e.send(t, left, right)
			check(waiting)
			remote.mustSend(t, "one")
			received.check(t, "one")
			e.send(t, left, right)
			e.send(t, left, right)
			remote.mustSend(t, "two")
			check(waiting)
			check(waiting)
			received.check(t, "two")

			busyErrors := readErrors(t, busy)
			for range 3 {
				check(busyErrors)
			}
			if extra := len(waiting) + len(busyErrors); extra > 0 {
				t.Errorf("%d errors too many", extra)
			}
		})
	}
}

// Many errors and many packets at once: none of either is lost, and each kind keeps its
// order.
func TestE_ReadMany(t *testing.T) {
	left, right := newPair(t)
	heard := readErrors(t, newErrorSocket(t, left, leftEnd))
	received := startReceiving(newConnected(t, left, leftEnd))
	remote := newSender(t, right, rightEnd)
	const many = 300
	for i := range many {
		reportedErrors[i%len(reportedErrors)].send(t, left, right)
		remote.mustSend(t, fmt.Sprint(i))
	}
	for i := range many {
		received.check(t, fmt.Sprint(i))
		if diff := cmp.Diff(reportedErrors[i%len(reportedErrors)].report(), labtest.Within(t, "the error", heard)); diff != "" {
			t.Fatalf("error %d (-want +got):\n%s", i, diff)
		}
	}
}

// An error about another tunnel's packet is not this one's.
func TestE_OtherTunnel(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	other := readErrors(t, newErrorSocket(t, left, config{Local: leftAddr, Remote: secondAddr}))
	heard := readErrors(t, newErrorSocket(t, left, leftEnd))
	hostUnreachable.send(t, left, right)
	labtest.Within(t, "the error", heard)
	if len(other) > 0 {
		t.Errorf("reported: %+v", <-other)
	}
}

// Neither route nor local address is needed: both may go while errors are on their way.
func TestE_WithoutRoute(t *testing.T) {
	left, right := newPair(t)
	cfg := config{Local: secondAddr, Remote: far}
	s := newErrorSocket(t, left, cfg)
	must(t, left.AddAddr("eth0", secondAddr.String()+"/24"))
	e := hostUnreachable
	e.about = cfg
	e.send(t, left, right)
	if diff := cmp.Diff(e.report(), labtest.Within(t, "the error", readErrors(t, s))); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// A message quotes as much of the inner packet as its sender likes, and only the
// beginning is kept.
func TestE_Quote(t *testing.T) {
	left, right := newPair(t)
	heard := readErrors(t, newErrorSocket(t, left, leftEnd))
	for quoted, kept := range map[int]int{8: 8, 28: 28, 548: 548, 576: 576, 577: 576, 1400: 576} {
		inner := bytes.Repeat([]byte{byte(quoted)}, quoted)
		icmpError{typ: ipv4.ICMPTypeTimeExceeded, inner: inner}.send(t, left, right)
		if got := labtest.Within(t, "the error", heard).Inner; got != string(inner[:kept]) {
			t.Errorf("%d bytes quoted: %d bytes kept, want %d", quoted, len(got), kept)
		}
	}
}

// The kernel of this host reports it too, where the next hop does not answer.
func TestE_NoNeighbour(t *testing.T) {
	left, _ := newPair(t)
	must(t,
		left.Sysctl("net.ipv4.neigh.eth0.mcast_solicit", "1"),
		left.Sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "10"),
	)
	silent := config{Local: leftAddr, Remote: thirdAddr}
	heard := readErrors(t, newErrorSocket(t, left, silent))
	newSender(t, left, silent).mustSend(t, quotedInner)
	want := reported{Type: 3, Code: 1, Offender: leftAddr.String(), Inner: quotedInner}
	if diff := cmp.Diff(want, labtest.Within(t, "the error", heard)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// One ReadErrors handles no more than a batch, so that its caller can wait in between.
func TestHazard2_ErrorBatch(t *testing.T) {
	left, right := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	const many = 2*rawsock.ErrorBatch + 3
	for range many {
		hostUnreachable.send(t, left, right)
	}
	for _, want := range []int{rawsock.ErrorBatch, rawsock.ErrorBatch, 3} {
		got := 0
		must(t, s.ReadErrors(func(rawsock.ICMPError) { got++ }))
		if got != want {
			t.Errorf("%d errors, want %d", got, want)
		}
	}
}

// Unread errors take nothing from the packets' buffer.
func TestHazard2_ErrorsTakeNoRoom(t *testing.T) {
	left, right := newPair(t)
	needBuffers(t, left)
	r := newConnected(t, left, leftEnd)
	s := newErrorSocket(t, left, leftEnd)
	remote := newSender(t, right, rightEnd)
	flood(t, remote, 12000)
	room := len(drain(t, r)) // packets that the buffer holds
	icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 3, inner: make([]byte, 1400)}.sendMany(t, left, right, 2000)
	flood(t, remote, room)
	if got := len(drain(t, r)); got != room {
		t.Errorf("received %d packets after a flood of ICMP errors, want %d", got, room)
	}
	got := 0
	must(t, s.ReadErrors(func(rawsock.ICMPError) { got++ }))
	if got != rawsock.ErrorBatch {
		t.Errorf("the ErrorSocket has %d errors, want %d", got, rawsock.ErrorBatch)
	}
}

// Malformed messages count as well, so that a flood of them does not keep ReadErrors busy.
func TestHazard2_MalformedBatch(t *testing.T) {
	left, right := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	malformed := newMessage()
	malformed[len(malformed)-1]++ // not what the checksum covers
	sendMessage(t, left, right, malformed, rawsock.ErrorBatch)
	must(t, s.ReadErrors(func(e rawsock.ICMPError) { t.Errorf("reported: %+v", newReported(e)) }))
	if s.Poll() != 0 {
		t.Error("not all malformed messages were read")
	}

	sendMessage(t, left, right, malformed, rawsock.ErrorBatch-1)
	hostUnreachable.sendMany(t, left, right, 2)
	for range 2 { // the last of one batch, and the first of the next
		got := 0
		must(t, s.ReadErrors(func(rawsock.ICMPError) { got++ }))
		if got != 1 {
			t.Errorf("%d errors, want 1", got)
		}
	}
}

// Errors that do not fit the buffer are lost, and the next ones are not.
func TestHazard2_HearsAfterOverflow(t *testing.T) {
	left, right := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	must(t, s.SetReceiveBuffer(0))
	const many = 30
	icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 1, inner: make([]byte, 1400)}.sendMany(t, left, right, many)
	got := 0
	must(t, s.ReadErrors(func(rawsock.ICMPError) { got++ }))
	if got == 0 || got == many {
		t.Fatalf("%d of %d errors fitted: the test tests nothing", got, many)
	}
	heard := readErrors(t, s)
	labtest.WaitParked(t, "rawsock.(*ErrorSocket).ReadErrors", 1)
	hostUnreachable.send(t, left, right)
	if diff := cmp.Diff(hostUnreachable.report(), labtest.Within(t, "the error", heard)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// The device is for packets: errors about them may come by any.
func TestHazard7_ErrorsByAnyDevice(t *testing.T) {
	l := newTwoLinks(t)
	heard := readErrors(t, newErrorSocket(t, l.left, by(t, l.cfg, l.left, "eth1")))
	e := hostUnreachable
	e.about = l.cfg
	e.send(t, l.left, l.right) // to 10.0.0.1, by eth0
	if got := labtest.Within(t, "the error", heard); got.Inner != quotedInner {
		t.Errorf("reported: %+v", got)
	}
}

// An ErrorSocket holds no message that came before its filters, whenever that was, but for one that the kernel was about
// to queue on another processor.
func TestE_HoldsOnlyItsOwn(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	other := newMessage()
	quoteOf(other).SetDestination(secondAddr.As4())
	finish(other)
	flooded, stop := make(chan error, 1), make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				flooded <- nil
				return
			default:
				if err := right.Do(func() error { return writeMessage(other, 64) }); err != nil {
					flooded <- err
					return
				}
			}
		}
	}()
	const sockets, few = 300, 3
	held := 0
	for range sockets {
		s := newErrorSocket(t, left, leftEnd)
		if s.Poll() != 0 {
			held++
		}
		must(t, s.Close())
	}
	if held > few {
		t.Errorf("%d of %d sockets hold a message about another tunnel", held, sockets)
	}
	close(stop)
	must(t, labtest.Within(t, "the end of the flood", flooded))
}

func TestErrorSocket_Closed(t *testing.T) {
	left, _ := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	ended := make(chan error, 1)
	go func() { ended <- s.ReadErrors(func(rawsock.ICMPError) { t.Error("an error was reported") }) }()
	labtest.WaitParked(t, "rawsock.(*ErrorSocket).ReadErrors", 1)
	must(t, s.Close())
	if err := labtest.Within(t, "the end of ReadErrors", ended); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadErrors: %v, want %v", err, os.ErrClosed)
	}
	if err := s.ReadErrors(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("another ReadErrors: %v, want %v", err, os.ErrClosed)
	}
	if err := s.Close(); err != nil {
		t.Errorf("another Close: %v", err)
	}
}

// Its descriptors are closed, and not inherited by programs that this one starts.
func TestErrorSocket_Descriptors(t *testing.T) {
	left, _ := newPair(t)
	cycle := func() { must(t, newErrorSocket(t, left, leftEnd).Close()) }
	cycle()
	before := descriptors(t)
	for range 50 {
		cycle()
	}
	if after := descriptors(t); len(after) != len(before) {
		t.Errorf("%d descriptors became %d in 50 cycles", len(before), len(after))
	}
	newErrorSocket(t, left, leftEnd)
	sockets := 0
	for _, fd := range descriptors(t) {
		protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil || protocol != packet.ProtoICMP {
			continue
		}
		sockets++
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the socket is inherited: flags %#x, %v", flags, err)
		}
	}
	if sockets == 0 {
		t.Error("no ICMP socket is open: the test tests nothing")
	}
}

func TestReadErrors_Allocs(t *testing.T) {
	left, right := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	const runs = 3
	hostUnreachable.sendMany(t, left, right, (runs+1)*rawsock.ErrorBatch)
	heard, failed := 0, 0
	handle := func(e rawsock.ICMPError) {
		if string(e.Inner) == quotedInner && e.Offender == rightAddr {
			heard++
		}
	}
	if allocs := testing.AllocsPerRun(runs, func() {
		if s.ReadErrors(handle) != nil {
			failed++
		}
	}); allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
	if want := (runs + 1) * rawsock.ErrorBatch; heard != want || failed > 0 {
		t.Errorf("%d errors, want %d; %d failures", heard, want, failed)
	}
}
