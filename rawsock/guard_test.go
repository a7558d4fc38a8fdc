package rawsock_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// reported is what a guard says about an ICMP error.
type reported struct {
	Type, Code uint8
	MTU        int
	Offender   string
	Inner      string
}

// newGuard opens a guard on h, and closes it when the test ends.
func newGuard(t testing.TB, h *netlab.Host, cfg rawsock.Config) *rawsock.Guard {
	t.Helper()
	var g *rawsock.Guard
	must(t, h.Do(func() (err error) {
		g, err = rawsock.NewGuard(cfg)
		return err
	}))
	t.Cleanup(func() { g.Close() })
	// What hangs in ReadErrors fails there.
	timer := time.AfterFunc(testTimeout, func() { g.Close() })
	t.Cleanup(func() { timer.Stop() })
	return g
}

func newConnectedGuard(t testing.TB, h *netlab.Host, cfg rawsock.Config) *rawsock.Guard {
	t.Helper()
	g := newGuard(t, h, cfg)
	must(t, g.Connect())
	return g
}

// readErrors reads g's errors in the background and without end.
func readErrors(t *testing.T, g *rawsock.Guard) <-chan reported {
	t.Helper()
	heard := make(chan reported, 1<<14)
	go func() {
		for {
			if err := g.ReadErrors(func(e rawsock.ICMPError) { heard <- newReported(e) }); err != nil {
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

// A guard hears of every error, also of those that no socket hears of by itself, while
// ReadErrors waits and before it.
func TestE_ReadErrors(t *testing.T) {
	for _, e := range icmpErrors {
		t.Run(e.name, func(t *testing.T) {
			left, right := newPair(t)
			remote := newSender(t, right, rightEnd)
			received := startReceiving(newConnected(t, left, leftEnd))
			waiting := readErrors(t, newConnectedGuard(t, left, leftEnd))
			busy := newConnectedGuard(t, left, leftEnd)
			labtest.WaitParked(t, "rawsock.(*Guard).ReadErrors", 1)

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
	heard := readErrors(t, newConnectedGuard(t, left, leftEnd))
	received := startReceiving(newConnected(t, left, leftEnd))
	remote := newSender(t, right, rightEnd)
	const many = 300
	for i := range many {
		icmpErrors[i%len(icmpErrors)].send(t, left, right)
		remote.mustSend(t, fmt.Sprint(i))
	}
	for i := range many {
		received.check(t, fmt.Sprint(i))
		if diff := cmp.Diff(icmpErrors[i%len(icmpErrors)].report(), labtest.Within(t, "the error", heard)); diff != "" {
			t.Fatalf("error %d (-want +got):\n%s", i, diff)
		}
	}
}

// An error about another tunnel's packet is not this one's.
func TestE_OtherTunnel(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	other := readErrors(t, newConnectedGuard(t, left, rawsock.Config{Local: leftAddr, Remote: secondAddr}))
	heard := readErrors(t, newConnectedGuard(t, left, leftEnd))
	hostUnreachable.send(t, left, right)
	labtest.Within(t, "the error", heard)
	if len(other) > 0 {
		t.Errorf("reported: %+v", <-other)
	}
}

// Neither is one that comes before the guard is connected.
func TestE_BeforeConnect(t *testing.T) {
	left, right := newPair(t)
	g := newGuard(t, left, leftEnd)
	heard := readErrors(t, g)
	hostUnreachable.send(t, left, right)
	labtest.WaitFor(t, "the socket to be quiet", func() bool { return g.Poll() == 0 })
	if len(heard) > 0 {
		t.Errorf("reported: %+v", <-heard)
	}

	must(t, g.Connect())
	hostUnreachable.send(t, left, right)
	if diff := cmp.Diff(hostUnreachable.report(), labtest.Within(t, "the error", heard)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// A message quotes as much of the inner packet as its sender likes, and only the
// beginning is kept.
func TestE_Quote(t *testing.T) {
	left, right := newPair(t)
	heard := readErrors(t, newConnectedGuard(t, left, leftEnd))
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
	nobody := rawsock.Config{Local: leftAddr, Remote: thirdAddr}
	heard := readErrors(t, newConnectedGuard(t, left, nobody))
	newSender(t, left, nobody).mustSend(t, quotedInner)
	want := reported{Type: 3, Code: 1, Offender: leftAddr.String(), Inner: quotedInner}
	if diff := cmp.Diff(want, labtest.Within(t, "the error", heard)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// One ReadErrors handles no more than a batch, so that who calls it can wait in between.
func TestHazard2_ErrorBatch(t *testing.T) {
	left, right := newPair(t)
	g := newConnectedGuard(t, left, leftEnd)
	const many = 2*rawsock.ErrorBatch + 3
	for range many {
		hostUnreachable.send(t, left, right)
	}
	for _, want := range []int{rawsock.ErrorBatch, rawsock.ErrorBatch, 3} {
		got := 0
		must(t, g.ReadErrors(func(rawsock.ICMPError) { got++ }))
		if got != want {
			t.Errorf("%d errors, want %d", got, want)
		}
	}
}

// Errors that nobody reads take nothing from the packets' buffer.
func TestHazard2_ErrorsTakeNoRoom(t *testing.T) {
	left, right := newPair(t)
	needBuffers(t, left)
	r := newConnected(t, left, leftEnd)
	g := newConnectedGuard(t, left, leftEnd)
	s := newSender(t, right, rightEnd)
	flood(t, s, 12000)
	room := len(drain(t, r)) // packets that the buffer holds
	icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 3, inner: make([]byte, 1400)}.sendMany(t, left, right, 2000)
	flood(t, s, room)
	if got := len(drain(t, r)); got != room {
		t.Errorf("received %d packets after a flood of ICMP errors, want %d", got, room)
	}
	got := 0
	must(t, g.ReadErrors(func(rawsock.ICMPError) { got++ }))
	if got != rawsock.ErrorBatch {
		t.Errorf("the guard has %d errors, want %d", got, rawsock.ErrorBatch)
	}
}

// An error that did not fit the queue is pending on the socket all the same, and
// ReadErrors waits nevertheless, as there is nothing to report.
func TestHazard2_WaitsAfterOverflow(t *testing.T) {
	left, right := newPair(t)
	g := newConnectedGuard(t, left, leftEnd)
	must(t, g.SetReceiveBuffer(0))
	tooLarge := icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 1, inner: make([]byte, 1400)}
	tooLarge.send(t, left, right)
	if g.Poll()&unix.POLLERR == 0 {
		t.Fatal("no error is pending: the test tests nothing")
	}
	heard := readErrors(t, g)
	labtest.WaitFor(t, "the socket to be quiet", func() bool { return g.Poll() == 0 })
	tooLarge.sendMany(t, left, right, 10) // while it waits
	labtest.WaitFor(t, "the socket to be quiet", func() bool { return g.Poll() == 0 })
	if n := len(heard); n > 0 {
		t.Fatalf("%d errors fitted: the test tests nothing", n)
	}
	must(t, g.SetReceiveBuffer(1<<16))
	hostUnreachable.send(t, left, right)
	if diff := cmp.Diff(hostUnreachable.report(), labtest.Within(t, "the error", heard)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// A receiver whose buffer is full has the kernel answer that there is no such protocol
// here; with a guard it does not.
func TestHazard11_OverloadIsSilent(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprint("guarded=", guarded), func(t *testing.T) {
			left, right := newPair(t)
			r := newConnected(t, right, rightEnd)
			if guarded {
				newConnectedGuard(t, right, rightEnd)
				// With its error queue full, too.
				icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 3, about: rightEnd}.sendMany(t, right, left, 1000)
			}
			before := icmpSent(t, right)
			flood(t, newSender(t, left, leftEnd), 12000)
			if r.Drops() == 0 {
				t.Fatal("no overload: the test tests nothing")
			}
			if sent := icmpSent(t, right) - before; guarded && sent != 0 || !guarded && sent == 0 {
				t.Errorf("the kernel has sent %d ICMP errors", sent)
			}
		})
	}
}

// A guard keeps no packet, connected or not, from whoever, whenever it came.
func TestHazard11_GuardKeepsNothing(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	flooded := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			for range 8 {
				s.Add(outer(leftEnd, 10), make([]byte, 10))
			}
			err = s.Flush()
		}
		flooded <- err
	}()
	for i := range 300 {
		g := newGuard(t, right, rightEnd)
		if i%2 == 0 {
			must(t, g.Connect())
		}
		if g.Poll()&unix.POLLIN != 0 {
			t.Error("the guard has a packet")
		}
		must(t, g.Close())
	}
	must(t, s.Close())
	if err := labtest.Within(t, "the end of the flood", flooded); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// The path MTU is that of a packet of the tunnel: by protocol, mark, TOS and device, as
// routes are now, and as routers have said.
func TestPathMTU(t *testing.T) {
	l := newTwoLinks(t)
	must(t, l.left.SetMTU("eth1", 1200))
	prefix, err := netlink.ParseIPNet(l.cfg.Remote.String() + "/32")
	must(t, err)
	rule := func(table, mtu int, change func(*netlink.Rule)) {
		t.Helper()
		must(t, l.left.Netlink().RouteAdd(&netlink.Route{Dst: prefix, Gw: []byte{10, 0, 0, 2}, Table: table, MTU: mtu}))
		r := netlink.NewRule()
		r.Table, r.Priority, r.Family = table, table, netlink.FAMILY_V4
		change(r)
		must(t, l.left.Netlink().RuleAdd(r))
	}
	check := func(g *rawsock.Guard, want int) {
		t.Helper()
		if mtu, err := g.PathMTU(); err != nil || mtu != want {
			t.Errorf("PathMTU = %d, %v, want %d", mtu, err, want)
		}
	}
	with := func(change func(*rawsock.Config)) *rawsock.Guard {
		t.Helper()
		cfg := l.cfg
		change(&cfg)
		return newGuard(t, l.left, cfg)
	}
	g := newGuard(t, l.left, l.cfg)
	check(g, 1500)

	rule(100, 1401, func(r *netlink.Rule) { r.Mark = 7 })
	check(g, 1500)
	check(with(func(c *rawsock.Config) { c.Mark = 7 }), 1401)
	rule(101, 1402, func(r *netlink.Rule) { r.Tos = 0x10 })
	check(g, 1500)
	check(with(func(c *rawsock.Config) { c.TOS = 0x10 }), 1402)
	byDevice := with(func(c *rawsock.Config) { c.Device = deviceIndex(t, l.left, "eth1") })
	check(byDevice, 1200)
	must(t, byDevice.SetDevice(0))
	check(byDevice, 1500)
	must(t, byDevice.SetDevice(deviceIndex(t, l.left, "eth1")))
	check(byDevice, 1200)

	rule(102, 1403, func(r *netlink.Rule) { r.IPProto = packet.ProtoIPIP })
	check(g, 1403)

	must(t, g.Close())
	if _, err := g.PathMTU(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("PathMTU after Close: %v, want %v", err, os.ErrClosed)
	}
}

// A router's word counts for PathMTU, and a route that goes away and comes again.
func TestPathMTUChanges(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", far.String()+"/32"))
	cfg := rawsock.Config{Local: leftAddr, Remote: far}
	g := newGuard(t, left, cfg)
	if mtu, err := g.PathMTU(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("PathMTU without a route = %d, %v, want %v", mtu, err, unix.ENETUNREACH)
	}
	for range 2 {
		must(t, left.AddRoute(far.String()+"/32", rightAddr.String()))
		if mtu, err := g.PathMTU(); err != nil || mtu != 1500 {
			t.Errorf("PathMTU = %d, %v, want 1500", mtu, err)
		}
		icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 4, mtu: 1000, about: cfg}.send(t, left, right)
		if mtu, err := g.PathMTU(); err != nil || mtu != 1000 {
			t.Errorf("PathMTU after 3/4 = %d, %v, want 1000", mtu, err)
		}
		must(t, left.Netlink().RouteDel(&netlink.Route{Dst: netlink.NewIPNet(far.AsSlice())}))
		if mtu, err := g.PathMTU(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("PathMTU without the route = %d, %v, want %v", mtu, err, unix.ENETUNREACH)
		}
	}
}

// The device is for the route lookup: errors may come by any.
func TestHazard7_GuardHearsOnAnyDevice(t *testing.T) {
	l := newTwoLinks(t)
	g := newConnectedGuard(t, l.left, by(t, l.cfg, l.left, "eth1"))
	heard := readErrors(t, g)
	e := hostUnreachable
	e.about = l.cfg
	e.send(t, l.left, l.right) // to 10.0.0.1, by eth0
	if got := labtest.Within(t, "the error", heard); got.Inner != quotedInner {
		t.Errorf("reported: %+v", got)
	}
	if err := g.SetDevice(noSuchDevice); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("SetDevice to none: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
}

func TestGuard_Closed(t *testing.T) {
	left, _ := newPair(t)
	for _, connected := range []bool{false, true} {
		g := newGuard(t, left, leftEnd)
		if connected {
			must(t, g.Connect())
		}
		ended := make(chan error, 1)
		go func() { ended <- g.ReadErrors(func(rawsock.ICMPError) { t.Error("an error was reported") }) }()
		labtest.WaitParked(t, "rawsock.(*Guard).ReadErrors", 1)
		must(t, g.Close())
		if err := labtest.Within(t, "the end of ReadErrors", ended); !errors.Is(err, os.ErrClosed) {
			t.Errorf("ReadErrors: %v, want %v", err, os.ErrClosed)
		}
		if err := g.ReadErrors(nil); !errors.Is(err, os.ErrClosed) {
			t.Errorf("another ReadErrors: %v, want %v", err, os.ErrClosed)
		}
		if err := g.Connect(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Connect: %v, want %v", err, os.ErrClosed)
		}
		if err := g.Close(); err != nil {
			t.Errorf("another Close: %v", err)
		}
	}
}

func TestReadErrors_Allocs(t *testing.T) {
	left, right := newPair(t)
	g := newConnectedGuard(t, left, leftEnd)
	const runs = 3
	hostUnreachable.sendMany(t, left, right, (runs+1)*rawsock.ErrorBatch)
	heard, failed := 0, 0
	handle := func(e rawsock.ICMPError) {
		if string(e.Inner) == quotedInner && e.Offender == rightAddr {
			heard++
		}
	}
	if allocs := testing.AllocsPerRun(runs, func() {
		if g.ReadErrors(handle) != nil {
			failed++
		}
	}); allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
	if want := (runs + 1) * rawsock.ErrorBatch; heard != want || failed > 0 {
		t.Errorf("%d errors, want %d; %d failures", heard, want, failed)
	}
}
