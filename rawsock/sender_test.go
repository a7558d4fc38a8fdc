package rawsock_test

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// noSuchDevice is an index that no device has.
const noSuchDevice = 1 << 30

// twoLinks are two hosts with two cables. The remote address is reachable by both; the
// left host's route leads to eth0.
type twoLinks struct {
	left, right *netlab.Host
	cfg         config // the left end's
}

func newTwoLinks(t *testing.T) twoLinks {
	t.Helper()
	lab := labtest.New(t)
	left, right := addHost(t, lab, "left"), addHost(t, lab, "right")
	const remote = "192.168.1.129"
	must(t,
		lab.Veth(left, "eth0", right, "eth0"),
		lab.Veth(left, "eth1", right, "eth1"),
		left.AddAddr("eth0", "10.0.0.1/24"), right.AddAddr("eth0", "10.0.0.2/24"),
		left.AddAddr("eth1", "10.0.1.1/24"), right.AddAddr("eth1", "10.0.1.2/24"),
		right.AddAddr("lo", remote+"/32"),
		left.AddRoute(remote+"/32", "10.0.0.2"),
	)
	return twoLinks{left, right, config{Local: leftAddr, Remote: netip.MustParseAddr(remote)}}
}

// checkLink sends a packet that must arrive by a device of the right host.
func (l twoLinks) checkLink(t *testing.T, s *sender, g *receiving, device string) {
	t.Helper()
	capture, err := l.right.Capture(device)
	must(t, err)
	payload := "by " + device
	s.mustSend(t, payload)
	g.check(t, payload)
	_, err = capture.Wait(labtest.Context(t), func(c netlab.Captured) bool {
		return string(packet.IPv4(c.Data).Payload()) == payload
	})
	must(t, err)
}

// O6: packets leave by the device that was asked for, whatever the routes say.
func TestO6_Device(t *testing.T) {
	l := newTwoLinks(t)
	g := startReceiving(newReceiver(t, l.right, reverse(l.cfg)))
	for _, device := range []string{"", "eth0", "eth1"} {
		t.Run("device="+device, func(t *testing.T) {
			l.checkLink(t, newSender(t, l.left, by(t, l.cfg, l.left, device)), g, cmp.Or(device, "eth0"))
		})
	}
}

// A device may be replaced by one of another index while the sender is there: what
// counts is the index that was set last.
func TestHazard7_DeviceReplaced(t *testing.T) {
	l := newTwoLinks(t)
	g := startReceiving(newReceiver(t, l.right, reverse(l.cfg)))
	s := newSender(t, l.left, by(t, l.cfg, l.left, "eth0"))
	for _, device := range []string{"eth0", "eth1", "", "eth1", "eth0"} {
		s.setDevice(deviceIndex(t, l.left, device))
		l.checkLink(t, s, g, cmp.Or(device, "eth0"))
	}

	s.setDevice(noSuchDevice)
	s.send(t, "lost")
	if diff := gocmp.Diff([]refusal{{0, stats.NoRoute}}, s.refusals); diff != "" {
		t.Errorf("without the device: refusals (-want +got):\n%s", diff)
	}
	s.refusals = nil
	s.setDevice(deviceIndex(t, l.left, "eth1"))
	l.checkLink(t, s, g, "eth1")
}

// A receiver's route lookup uses the device too, and what it receives comes by any.
func TestHazard7_ReceiverDevice(t *testing.T) {
	l := newTwoLinks(t)
	cfg := l.cfg
	cfg.Remote = netip.MustParseAddr("192.168.9.9") // no route leads there
	must(t, l.right.AddAddr("lo", cfg.Remote.String()+"/32"))
	if err := newReceiver(t, l.left, cfg).Connect(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("Connect without a device: %v, want %v", err, unix.ENETUNREACH)
	}
	r := newReceiver(t, l.left, by(t, cfg, l.left, "eth1"))
	r.cfg.Device = 0
	if err := r.Connect(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("Connect with the device taken away: %v, want %v", err, unix.ENETUNREACH)
	}
	r.cfg.Device = deviceIndex(t, l.left, "eth1")
	must(t, r.Connect())
	r.cfg.Device = noSuchDevice
	if err := r.Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("Connect by no device: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
	newSender(t, l.right, reverse(cfg)).mustSend(t, "by eth0")
	startReceiving(r).check(t, "by eth0")
}

// A mark takes part in the choice of the route, of each packet and of Connect; and each
// packet has it, for filters that look at it, whichever socket it leaves by.
func TestHazard22_Mark(t *testing.T) {
	l := newTwoLinks(t)
	const mark, table = 0xdeadbeef, 100
	prefix, err := netlink.ParseIPNet("192.168.9.9/32")
	must(t, err, l.right.AddAddr("lo", "192.168.9.9/32"),
		l.left.Netlink().RouteAdd(&netlink.Route{Dst: prefix, Gw: []byte{10, 0, 1, 2}, Table: table}))
	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Priority, rule.Family = mark, table, 1000, netlink.FAMILY_V4
	must(t, l.left.Netlink().RuleAdd(rule))

	without := l.cfg
	without.Remote = netip.MustParseAddr("192.168.9.9")
	with := without
	with.Mark = mark
	s := newSender(t, l.left, without)
	if s.send(t, "no way"); len(s.refusals) != 1 || s.refusals[0].Why != stats.NoRoute {
		t.Errorf("without a mark: %+v, want no route", s.refusals)
	}
	if newReceiver(t, l.left, without).Connect() == nil {
		t.Error("without a mark: connected")
	}
	s = newSender(t, l.left, with)
	must(t, l.left.Do(s.EnableHops))
	must(t, newReceiver(t, l.left, with).Connect())
	g := startReceiving(newReceiver(t, l.right, reverse(with)))
	seen := watchMetadata(t, l.left, "eth1")
	l.checkLink(t, s, g, "eth1")
	s.setHop(hopTo(t, l.left, l.right, "eth1"))
	s.mustSend(t, "by a hop")
	g.check(t, "by a hop")
	if got := seen.all(t); len(got) != 2 || got[0].Mark != mark || got[1].Mark != mark {
		t.Errorf("packets left with %+v, want mark %#x", got, uint32(mark))
	}
}

// slow puts a token bucket of rate bytes a second, at least 20000, and limit bytes
// of queue before a device; its first 70000 bytes pass at once. Called again, it
// changes the rate for what is queued.
func slow(t *testing.T, h *netlab.Host, device string, rate uint64, limit uint32) {
	t.Helper()
	l, err := h.Netlink().LinkByName(device)
	must(t, err)
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index,
			Handle:    netlink.MakeHandle(1, 0),
			Parent:    netlink.HANDLE_ROOT,
		},
		Rate:  rate,
		Limit: limit,
		// In ticks of 64 ns (PSCHED_SHIFT), at most 2³² ns: no longer packet
		// passes (tbf_change in net/sched/sch_tbf.c).
		Buffer: uint32(70000 * 1e9 / float64(rate) / 64),
	}
	must(t, h.Netlink().QdiscReplace(tbf))
}

const largeMTU = 65000

// newSlowPair returns two hosts on a cable for large packets, of which hardly any
// leave the left one until faster is called, and none is lost.
func newSlowPair(t *testing.T) (left, right *netlab.Host, faster func()) {
	t.Helper()
	left, right = newPair(t)
	must(t, left.SetMTU("eth0", largeMTU), right.SetMTU("eth0", largeMTU))
	const limit = 1 << 30
	slow(t, left, "eth0", 20000, limit)
	return left, right, func() {
		slow(t, left, "eth0", 20<<20, limit) // which a receiver keeps up with
		ping(t, left, rightAddr)             // has it look at its queue at once
	}
}

// largePadding is what a numbered packet carries, in bytes.
const largePadding = 60000

// addNumbered adds a packet of largePadding with a number.
func (s *sender) addNumbered(i int) {
	header := append(outer(s.cfg, 4+largePadding), fmt.Sprintf("%4d", i)...)
	s.Add(header, make([]byte, largePadding))
}

// number returns the number of such a packet.
func number(t *testing.T, p packet.IPv4) (i int) {
	t.Helper()
	if len(p) != packet.IPv4HdrLen+4+largePadding {
		t.Fatalf("received %d bytes: not one of the numbered packets", len(p))
	}
	_, err := fmt.Sscan(string(p.Payload()[:4]), &i)
	must(t, err)
	return i
}

// flushNumbered sends count of them, in the background, until Flush fails.
func flushNumbered(s *sender, count int) <-chan error {
	done := make(chan error, 1)
	go func() {
		for i := range count {
			s.addNumbered(i)
			if s.Len() < rawsock.BatchSize && i < count-1 {
				continue
			}
			if err := s.Flush(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// smallBuffer leaves room for a few numbered packets.
const smallBuffer = 100000

// Flush waits while the socket's buffer is full, and loses nothing that finds room in
// time.
func TestFlush_Waits(t *testing.T) {
	for name, use := range outlets {
		t.Run(name, func(t *testing.T) { flushWaits(t, use) })
	}
}

func flushWaits(t *testing.T, use outlet) {
	left, right, faster := newSlowPair(t)
	needBuffers(t, right)
	s := newSender(t, left, leftEnd)
	use(t, s, left, right)
	must(t, s.SetSendBuffer(smallBuffer))
	s.SetMaxWait(testTimeout)
	g := startReceiving(newConnected(t, right, rightEnd))
	// This leaves an error on the socket's error queue.
	s.send(t, strings.Repeat("x", largeMTU))
	if diff := gocmp.Diff([]refusal{{0, stats.TooBig}}, s.refusals); diff != "" {
		t.Fatalf("refusals (-want +got):\n%s", diff)
	}
	s.refusals = nil

	const count = 100
	done := flushNumbered(s, count)
	labtest.WaitParked(t, "rawsock.(*Sender).Flush", 1)
	labtest.WaitFor(t, "the sockets to be quiet", func() bool { return s.Poll() == 0 })
	faster()
	must(t, labtest.Within(t, "Flush", done))
	if len(s.refusals) > 0 {
		t.Errorf("refusals: %+v", s.refusals)
	}
	for i := range count {
		if got := number(t, g.next(t)); got != i {
			t.Fatalf("received packet %d, want packet %d", got, i)
		}
	}
}

func TestFlush_Closed(t *testing.T) {
	for name, use := range outlets {
		t.Run(name, func(t *testing.T) { flushClosed(t, use) })
	}
}

func flushClosed(t *testing.T, use outlet) {
	left, right, _ := newSlowPair(t)
	s := newSender(t, left, leftEnd)
	use(t, s, left, right)
	must(t, s.SetSendBuffer(smallBuffer))
	s.SetMaxWait(testTimeout)
	done := flushNumbered(s, 100)
	labtest.WaitParked(t, "rawsock.(*Sender).Flush", 1)
	must(t, s.Close())
	if err := labtest.Within(t, "Flush", done); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Flush: %v, want %v", err, os.ErrClosed)
	}
	if len(s.refusals) > 0 {
		t.Errorf("refusals: %+v", s.refusals)
	}
	s.Add(outer(leftEnd, 0), nil)
	if err := s.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("another Flush: %v, want %v", err, os.ErrClosed)
	}
	if err := s.Close(); err != nil {
		t.Errorf("another Close: %v", err)
	}
}

// A link that hardly moves holds no sender: what its queue, or the socket's buffer, has
// no room for is refused, and each other packet arrives. By another link, packets pass
// at once.
func TestHazard3_SlowLink(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limit  uint32 // of the queueing discipline, in bytes
		buffer int    // of the sockets, in bytes; 0 for the sender's choice
	}{
		{"full queue", 18 << 20, 0}, // more than a buffer of the usual sizes holds
		{"full buffer", 1 << 30, smallBuffer},
	} {
		for name := range outlets {
			t.Run(tt.name+","+name, func(t *testing.T) { slowLink(t, name, tt.limit, tt.buffer) })
		}
	}
}

func slowLink(t *testing.T, kind string, limit uint32, buffer int) {
	lab := labtest.New(t)
	left, right := newPairIn(t, lab)
	needBuffers(t, right)
	must(t, lab.Veth(left, "eth1", right, "eth1"))
	for _, h := range []*netlab.Host{left, right} {
		must(t, h.SetMTU("eth0", largeMTU), h.SetMTU("eth1", largeMTU))
	}
	s := newSender(t, left, leftEnd)
	outlets[kind](t, s, left, right)
	if kind == "raw" {
		must(t, left.Do(s.EnableHops))
	}
	if buffer > 0 {
		must(t, s.SetSendBuffer(buffer))
	}
	g := startReceiving(newConnected(t, right, rightEnd))
	slow(t, left, "eth0", 20000, limit)

	const batches, count = 6, 6 * rawsock.BatchSize
	var accepted []int
	for batch := range batches {
		s.refusals = nil
		for i := range rawsock.BatchSize {
			s.addNumbered(batch*rawsock.BatchSize + i)
		}
		start := time.Now()
		must(t, s.Flush())
		if d := time.Since(start); d > time.Second {
			t.Errorf("Flush took %v", d)
		}
		refused := map[int]bool{}
		for _, r := range s.refusals {
			if r.Why != stats.Congested || refused[r.Index] {
				t.Fatalf("batch %d: refusals %+v, want %v, and each once", batch, s.refusals, stats.Congested)
			}
			refused[r.Index] = true
		}
		for i := range rawsock.BatchSize {
			if !refused[i] {
				accepted = append(accepted, batch*rawsock.BatchSize+i)
			}
		}
	}
	if len(accepted) < 2 || len(accepted) == count {
		t.Fatalf("%d of %d packets were sent, want some, and not all", len(accepted), count)
	}
	passed := 0
	for len(g.packets) > 0 { // the first packets, which the link lets pass
		if got := number(t, g.next(t)); got != accepted[passed] {
			t.Fatalf("received packet %d, want packet %d", got, accepted[passed])
		}
		passed++
	}

	s.refusals = nil
	s.setHop(hopTo(t, left, right, "eth1"))
	if buffer == 0 || kind == "raw" { // a small buffer stays full, but each kind of socket has its own
		s.mustSend(t, "by another link")
		g.check(t, "by another link")
	}
	if buffer == 0 {
		s.setHop(nil)
		must(t, left.Netlink().RouteAdd(&netlink.Route{Dst: netlink.NewIPNet(rightAddr.AsSlice()), LinkIndex: deviceIndex(t, left, "eth1")}))
		ping(t, left, rightAddr)
		s.mustSend(t, "by another route")
		g.check(t, "by another route")
		must(t, left.Netlink().RouteDel(&netlink.Route{Dst: netlink.NewIPNet(rightAddr.AsSlice()), LinkIndex: deviceIndex(t, left, "eth1")}))
	}

	slow(t, left, "eth0", 20<<20, limit)
	ping(t, left, rightAddr) // has the link look at its queue at once
	for _, want := range accepted[passed:] {
		if got := number(t, g.next(t)); got != want {
			t.Fatalf("received packet %d, want packet %d", got, want)
		}
	}
}

// A hop that is set while Flush waits holds for the rest of the batch.
func TestHazard3_HopWhileWaiting(t *testing.T) {
	lab := labtest.New(t)
	left, right := newPairIn(t, lab)
	needBuffers(t, right)
	must(t, lab.Veth(left, "eth1", right, "eth1"))
	for _, h := range []*netlab.Host{left, right} {
		must(t, h.SetMTU("eth0", largeMTU), h.SetMTU("eth1", largeMTU))
	}
	s := newSender(t, left, leftEnd)
	must(t, left.Do(s.EnableHops), s.SetSendBuffer(smallBuffer))
	s.SetMaxWait(testTimeout)
	g := startReceiving(newConnected(t, right, rightEnd))
	wire, err := right.Capture("eth1")
	must(t, err)
	slow(t, left, "eth0", 20000, 1<<30)
	done := flushNumbered(s, rawsock.BatchSize)
	labtest.WaitParked(t, "rawsock.(*Sender).Flush", 1)
	s.setHop(hopTo(t, left, right, "eth1"))
	slow(t, left, "eth0", 20<<20, 1<<30)
	ping(t, left, rightAddr) // has the link look at its queue at once, which ends the wait
	must(t, labtest.Within(t, "Flush", done))
	if len(s.refusals) > 0 {
		t.Errorf("refusals: %+v", s.refusals)
	}
	_, err = wire.Wait(labtest.Context(t), func(c netlab.Captured) bool {
		p := packet.IPv4(c.Data)
		return p.Protocol() == packet.ProtoIPIP && number(t, p) == rawsock.BatchSize-1
	})
	must(t, err)
	arrived := map[int]bool{}
	for len(arrived) < rawsock.BatchSize {
		arrived[number(t, g.next(t))] = true
	}
}

// A full queue is noticed, though it is the device's and not the socket's: every packet
// either arrives or is refused.
func TestCongested(t *testing.T) {
	for name, use := range outlets {
		t.Run(name, func(t *testing.T) { congested(t, use) })
	}
}

func congested(t *testing.T, use outlet) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	use(t, s, left, right)
	g := startReceiving(newConnected(t, right, rightEnd))
	const size = 1000
	slow(t, left, "eth0", 1<<20, 5*size)
	const batches = 10
	var want []string
	for batch := range batches {
		s.refusals = nil
		var payloads []string
		for i := range rawsock.BatchSize {
			payloads = append(payloads, fmt.Sprintf("%3d %2d %*s", batch, i, size, ""))
		}
		s.send(t, payloads...)
		refused := map[int]bool{}
		for _, r := range s.refusals {
			if r.Why != stats.Congested || refused[r.Index] {
				t.Fatalf("batch %d: refusals %+v, want %v, and each once", batch, s.refusals, stats.Congested)
			}
			refused[r.Index] = true
		}
		for i, p := range payloads {
			if !refused[i] {
				want = append(want, p)
			}
		}
	}
	if sent := len(want); sent == 0 || sent == batches*rawsock.BatchSize {
		t.Fatalf("%d of %d packets were sent, want some, and not all", sent, batches*rawsock.BatchSize)
	}
	g.check(t, want...)
	// By now the queue is empty, so this one passes.
	s.refusals = nil
	s.mustSend(t, "end")
	g.check(t, "end")
}
