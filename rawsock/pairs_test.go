package rawsock_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// Many pairs by one receiver.

// ends returns n pairs between two hosts, as the right one sees them, whose addresses it
// adds to the left one.
func ends(t testing.TB, left *netlab.Host, n int) (configs []config) {
	t.Helper()
	for i := range n {
		remote := netip.AddrFrom4([4]byte{10, 0, 1, byte(1 + i)})
		must(t, left.AddAddr("lo", remote.String()+"/32"))
		configs = append(configs, config{Local: rightAddr, Remote: remote})
	}
	return configs
}

// addRemotes makes the remote addresses of ends reachable.
func addRemotes(t testing.TB, right *netlab.Host) {
	t.Helper()
	must(t, right.AddRoute("10.0.1.0/24", leftAddr.String()))
}

// R2: each receiver gets the packets of the pairs that were added to it, and no others.
func TestR2_Pairs(t *testing.T) {
	labtest.Need(t, "bpf")
	left, right := newPair(t)
	pairs := ends(t, left, 6)
	var senders []*sender
	for _, cfg := range pairs {
		senders = append(senders, newSender(t, left, reverse(cfg)))
	}
	r := [2]*receiver{newReceiver(t, right, pairs[0]), newReceiver(t, right, pairs[3])}
	must(t, r[0].Add(pairs[1].pair()), r[0].Add(pairs[2].pair()), r[0].Add(pairs[2].pair()))
	must(t, r[1].Add(pairs[2].pair()))
	g := [2]*receiving{startReceiving(r[0]), startReceiving(r[1])}
	round := func(name string, want [2]string) {
		t.Helper()
		for i, s := range senders {
			s.mustSend(t, fmt.Sprint(name, " of ", i))
		}
		senders[0].mustSend(t, "end")
		senders[3].mustSend(t, "end")
		for i := range g {
			for _, pair := range want[i] {
				g[i].check(t, fmt.Sprint(name, " of ", string(pair)))
			}
			g[i].check(t, "end")
		}
	}
	round("first", [2]string{"012", "23"})
	must(t, r[0].Remove(pairs[2].pair()), r[0].Remove(pairs[2].pair()), r[0].Remove(pairs[5].pair()))
	round("removed", [2]string{"01", "23"})
	must(t, r[0].Add(pairs[5].pair()), r[1].Remove(pairs[2].pair()))
	round("added", [2]string{"015", "3"})
	for i := range r {
		if n := r[i].Drops(); n != 0 {
			t.Errorf("receiver %d counts %d drops of unknown pairs", i, n)
		}
		for _, p := range pairs {
			if n := r[i].PairDrops(p.pair()); n != 0 {
				t.Errorf("receiver %d counts %d drops of %v", i, n, p.pair())
			}
		}
	}
}

// Without any pair nothing is received, before the first one and after the last.
func TestR2_NoPair(t *testing.T) {
	for _, credit := range []bool{false, true} {
		t.Run(fmt.Sprint("credit=", credit), func(t *testing.T) {
			if !credit {
				defer rawsock.WithoutCredit()()
			} else {
				labtest.Need(t, "bpf")
			}
			left, right := newPair(t)
			s := newSender(t, left, leftEnd)
			r := &receiver{cfg: rightEnd}
			must(t, right.Do(func() (err error) {
				r.Receiver, err = rawsock.NewReceiver(0, 1)
				return err
			}))
			defer r.Close()
			g := startReceiving(r)
			must(t, r.Connect()) // does nothing
			for i, connect := range []bool{false, true, false} {
				s.mustSend(t, "lost")
				must(t, right.Do(func() error { return r.Add(rightEnd.pair()) }))
				if connect {
					must(t, r.Connect())
				}
				s.mustSend(t, fmt.Sprint(i))
				g.check(t, fmt.Sprint(i))
				must(t, r.Remove(rightEnd.pair()))
			}
		})
	}
}

// Without a credit, several pairs pass the filter together with unknown ones.
func TestR2_PairsWithoutCredit(t *testing.T) {
	defer rawsock.WithoutCredit()()
	left, right := newPair(t)
	pairs := ends(t, left, 3)
	var senders []*sender
	for _, cfg := range pairs {
		senders = append(senders, newSender(t, left, reverse(cfg)))
	}
	r := newReceiver(t, right, pairs[0])
	g := startReceiving(r)
	send := func(name string) {
		for i, s := range senders {
			s.mustSend(t, fmt.Sprint(name, i))
		}
	}
	send("single ")
	must(t, r.Add(pairs[1].pair()))
	send("both ")
	must(t, r.Remove(pairs[0].pair()))
	send("second ")
	g.check(t, "single 0", "both 0", "both 1", "both 2", "second 1")
}

// floodPairs sends a number of packets of 1500 bytes to each pair, in alternation.
func floodPairs(t *testing.T, senders []*sender, packets int) {
	t.Helper()
	for range packets / 50 {
		for _, s := range senders {
			flood(t, s, 50)
		}
	}
}

// countPairs returns how many packets of each remote address there are.
func countPairs(packets []packet.IPv4) map[netip.Addr]uint64 {
	counts := map[netip.Addr]uint64{}
	for _, p := range packets {
		counts[netip.AddrFrom4(p.Source())]++
	}
	return counts
}

// What a pair loses for want of room is counted for this pair, exactly, whichever shares and
// pairs there are besides, and goes on when the pair comes back.
func TestHazard12_PairDrops(t *testing.T) {
	labtest.Need(t, "bpf")
	left, right := newPair(t)
	pairs := ends(t, left, 3)
	var senders []*sender
	for _, cfg := range pairs {
		senders = append(senders, newSender(t, left, reverse(cfg)))
	}
	r := newReceiver(t, right, pairs[0])
	must(t, r.Add(pairs[1].pair()))
	const packets = 8000 // a third more than there is room for, in all
	want, received := map[netip.Addr]uint64{}, map[netip.Addr]uint64{}
	round := func(known ...int) {
		t.Helper()
		floodPairs(t, senders, packets)
		for remote, n := range countPairs(drain(t, r)) {
			received[remote] += n
		}
		for _, i := range known {
			want[pairs[i].Remote] += packets
			remote := pairs[i].Remote
			if got := received[remote] + r.PairDrops(pairs[i].pair()); got != want[remote] {
				t.Errorf("pair %d: %d received and %d dropped, of %d", i, received[remote], r.PairDrops(pairs[i].pair()), want[remote])
			}
			if r.PairDrops(pairs[i].pair()) == 0 {
				t.Errorf("pair %d: nothing was dropped: the test tests nothing", i)
			}
		}
		if n := r.PairDrops(pairs[2].pair()) + r.Drops(); n != 0 {
			t.Errorf("%d drops of no pair", n)
		}
	}
	round(0, 1)
	last := r.PairDrops(pairs[0].pair())
	must(t, r.Remove(pairs[0].pair()))
	flood(t, senders[0], packets)
	if n := r.PairDrops(pairs[0].pair()); n != last {
		t.Errorf("%d drops of a pair that was removed with %d", n, last)
	}
	must(t, r.Add(pairs[0].pair()))
	round(0, 1)
	before := [2]uint64{r.PairDrops(pairs[0].pair()), r.PairDrops(pairs[1].pair())}
	must(t, r.Close())
	if after := [2]uint64{r.PairDrops(pairs[0].pair()), r.PairDrops(pairs[1].pair())}; after != before {
		t.Errorf("drops %v became %v after Close", before, after)
	}
	for name, err := range map[string]error{
		"Add": r.Add(pairs[2].pair()), "Remove": r.Remove(pairs[0].pair()), "Connect": r.Connect(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v, want %v", name, err, os.ErrClosed)
		}
	}
}

// Without a credit, drops are a pair's while it is the only one.
func TestHazard12_PairDropsWithoutCredit(t *testing.T) {
	defer rawsock.WithoutCredit()()
	left, right := newPair(t)
	pairs := ends(t, left, 2)
	s := newSender(t, left, reverse(pairs[0]))
	r := newReceiver(t, right, pairs[0])
	const packets = 12000
	counts := func() [3]uint64 {
		return [3]uint64{r.PairDrops(pairs[0].pair()), r.PairDrops(pairs[1].pair()), r.Drops()}
	}
	overload := func() uint64 {
		t.Helper()
		flood(t, s, packets)
		n := packets - uint64(len(drain(t, r)))
		if n == 0 {
			t.Fatal("no overload: the test tests nothing")
		}
		return n
	}
	var want [3]uint64
	want[0] = overload()
	must(t, r.Add(pairs[1].pair()))
	want[2] = overload()
	if got := counts(); got != want {
		t.Errorf("drops %v, want %v", got, want)
	}
	must(t, r.Remove(pairs[1].pair()))
	want[0] += overload()
	must(t, r.Add(pairs[1].pair()))
	if got := counts(); got != want {
		t.Errorf("drops %v, want %v", got, want)
	}
}

// The stream of one pair goes on while others come and go, which takes its receiver from a
// connected socket to one that is not, and back. Nothing is lost.
func TestTransitions(t *testing.T) {
	for _, credit := range []bool{true, false} {
		t.Run(fmt.Sprint("credit=", credit), func(t *testing.T) {
			if credit {
				labtest.Need(t, "bpf")
			} else {
				defer rawsock.WithoutCredit()()
			}
			transitions(t)
		})
	}
}

func transitions(t *testing.T) {
	left, right := newPair(t)
	addRemotes(t, right)
	pairs := ends(t, left, 2)
	r := newReceiver(t, right, pairs[0])
	before := len(descriptors(t))

	const window = 100 // packets on their way, far from what a socket has room for
	sent, stop := make(chan uint32, 1), make(chan struct{})
	var arrived, again atomic.Uint32 // packets so far
	s := newSender(t, left, reverse(pairs[0]))
	go func() {
		n := uint32(0)
		defer func() { sent <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n >= arrived.Load()+window {
				time.Sleep(10 * time.Microsecond)
				continue
			}
			s.Add(outer(s.cfg, 4), binary.BigEndian.AppendUint32(nil, n))
			n++
			if s.Flush() != nil || len(s.refusals) > 0 {
				return
			}
		}
	}()
	type result struct {
		missing []uint32
		last    uint32
	}
	received := make(chan result, 1)
	go func() {
		var got result
		next := uint32(0)
		defer func() { received <- got }()
		for {
			packets, err := r.Receive()
			if err != nil {
				return
			}
			for _, p := range packets {
				if p.Source() != pairs[0].Remote.As4() {
					continue
				}
				n := binary.BigEndian.Uint32(p.Payload())
				if n == 1<<32-1 {
					return
				}
				if n < next {
					again.Add(1)
					continue
				}
				for ; next < n; next++ {
					got.missing = append(got.missing, next)
				}
				next++
				got.last = n
			}
			arrived.Store(next)
		}
	}()

	const rounds = 20
	goesOn := func(packets uint32) {
		t.Helper()
		before := arrived.Load()
		labtest.WaitFor(t, "the stream to go on", func() bool { return arrived.Load() >= before+packets })
	}
	other := newSender(t, left, reverse(pairs[1]))
	for range rounds {
		must(t, r.Connect())
		must(t, right.Do(func() error { return r.Add(pairs[1].pair()) }))
		other.mustSend(t, "of another pair")
		must(t, r.Connect()) // does nothing
		must(t, r.Remove(pairs[1].pair()))
		// What was on its way meanwhile may come twice.
		goesOn(2 * window)
		before := again.Load()
		goesOn(window)
		if n := again.Load() - before; n > 0 {
			t.Errorf("%d packets came again while nothing changed", n)
		}
	}
	close(stop)
	total := labtest.Within(t, "the end of the stream", sent)
	if len(s.refusals) > 0 {
		t.Fatalf("refused: %+v", s.refusals)
	}
	s.mustSend(t, "\xff\xff\xff\xff")
	got := labtest.Within(t, "the rest of the stream", received)
	if len(got.missing) > 0 || got.last != total-1 {
		t.Errorf("of %d packets, %d are missing; the last is %d", total, len(got.missing), got.last)
	}
	t.Logf("%d packets, of which %d came again", total, again.Load())
	must(t, s.Close(), other.Close())
	if after := len(descriptors(t)); after > before+2 {
		t.Errorf("%d descriptors became %d", before, after)
	}
}

// After every transition the receiver is connected exactly if it has one pair: then the
// kernel offers it no other packet.
func TestTransitions_Connected(t *testing.T) {
	left, right := newPair(t)
	addRemotes(t, right)
	pairs := ends(t, left, 3)
	r := newReceiver(t, right, pairs[0])
	check := func(remote string) {
		t.Helper()
		var table []byte
		must(t, right.Do(func() (err error) {
			table, err = os.ReadFile("/proc/thread-self/net/raw")
			return err
		}))
		const newest = 1 // below the names
		fields := strings.Fields(strings.Split(string(table), "\n")[newest])
		var number uint32
		_, err := fmt.Sscanf(fields[2], "%x:0000", &number)
		must(t, err)
		var address [4]byte
		binary.NativeEndian.PutUint32(address[:], number)
		if got := netip.AddrFrom4(address).String(); got != remote {
			t.Errorf("connected to %s, want %s:\n%s", got, remote, table)
		}
	}
	add := func(i int) {
		t.Helper()
		must(t, right.Do(func() error { return r.Add(pairs[i].pair()) }))
		r.cfg = pairs[i]
	}
	check("0.0.0.0")
	must(t, r.Connect(), r.Connect())
	check("10.0.1.1")
	add(1)
	check("0.0.0.0")
	must(t, r.Connect())
	check("0.0.0.0")
	must(t, r.Remove(pairs[0].pair()))
	check("0.0.0.0")
	must(t, r.Connect())
	check("10.0.1.2")
	must(t, r.Remove(pairs[1].pair()), r.Connect())
	add(1)
	must(t, r.Connect())
	check("10.0.1.2")
	must(t, r.Remove(pairs[1].pair()))
	add(2) // which it cannot be connected to as it is
	check("0.0.0.0")
	must(t, r.Connect())
	check("10.0.1.3")
	// Receive was not called so far, so all sockets are open; now they are read one by one.
	g := startReceiving(r)
	newSender(t, left, reverse(pairs[2])).mustSend(t, "at last")
	g.check(t, "at last")
}

// A receiver that could not connect, for want of a route, takes the packets of a pair with
// another local address all the same.
func TestTransitions_NotConnected(t *testing.T) {
	for _, credit := range []bool{true, false} {
		t.Run(fmt.Sprint("credit=", credit), func(t *testing.T) {
			if credit {
				labtest.Need(t, "bpf")
			} else {
				defer rawsock.WithoutCredit()()
			}
			left, right := newPair(t)
			must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
			first, second := config{Local: rightAddr, Remote: far}, config{Local: secondAddr, Remote: leftAddr}
			must(t, left.AddAddr("lo", far.String()+"/32"))
			r := newReceiver(t, right, first)
			if r.Connect() == nil {
				t.Fatal("connected without a route: the test tests nothing")
			}
			g := startReceiving(r)
			must(t, r.Add(second.pair()))
			newSender(t, left, reverse(second)).mustSend(t, "of both")
			newSender(t, left, reverse(first)).mustSend(t, "of both")
			g.check(t, "of both", "of both")
			must(t, r.Remove(second.pair()))
			if r.Connect() == nil {
				t.Fatal("connected without a route: the test tests nothing")
			}
			must(t, r.Remove(first.pair()), r.Add(second.pair()))
			newSender(t, left, reverse(second)).mustSend(t, "of the other")
			g.check(t, "of the other")
		})
	}
}

// Close closes sockets that were replaced and not read.
func TestTransitions_Close(t *testing.T) {
	left, right := newPair(t)
	addRemotes(t, right)
	pairs := ends(t, left, 2)
	before := len(descriptors(t))
	r := newReceiver(t, right, pairs[0])
	for range 3 {
		must(t, r.Connect())
		must(t, right.Do(func() error { return r.Add(pairs[1].pair()) }))
		must(t, r.Remove(pairs[1].pair()))
	}
	must(t, r.Close())
	if after := len(descriptors(t)); after != before {
		t.Errorf("%d descriptors became %d", before, after)
	}
	if _, err := r.Receive(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive: %v, want %v", err, os.ErrClosed)
	}
}

// A connected receiver needs another socket for a second pair, which must not be of
// another network; until then it goes on as before.
func TestTransitions_OtherNamespace(t *testing.T) {
	left, right := newPair(t)
	pairs := ends(t, left, 2)
	addRemotes(t, right)
	r := newReceiver(t, right, pairs[0])
	must(t, r.Connect())
	before := len(descriptors(t))
	if err := left.Do(func() error { return r.Add(pairs[1].pair()) }); err == nil || !strings.Contains(err.Error(), "namespace") {
		t.Errorf("Add in another network namespace: %v", err)
	}
	if after := len(descriptors(t)); after != before {
		t.Errorf("%d descriptors became %d", before, after)
	}
	g := startReceiving(r)
	for i, cfg := range pairs {
		newSender(t, left, reverse(cfg)).mustSend(t, fmt.Sprint(i))
	}
	newSender(t, left, reverse(pairs[0])).mustSend(t, "end")
	g.check(t, "0", "end")
}

// A guard serves one pair or all, and has a socket at any time.
func TestHazard11_GuardTransitions(t *testing.T) {
	defer rawsock.WithoutCredit()()
	left, right := newPair(t)
	addRemotes(t, right)
	must(t, right.Sysctl("net.ipv4.icmp_ratelimit", "0"))
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	pairs := ends(t, left, 2)
	pairs[1].Local = secondAddr
	ping(t, left, secondAddr)
	g := newGuard(t, right, pairs[0])
	r := newReceiver(t, right, pairs[0])
	must(t, r.Add(pairs[1].pair()))
	var senders []*sender
	for _, cfg := range pairs {
		senders = append(senders, newSender(t, left, reverse(cfg)))
	}
	check := func(name string, silent ...bool) {
		t.Helper()
		for i, s := range senders {
			before, drops := icmpSent(t, right), r.Drops()
			flood(t, s, 12000)
			if r.Drops() == drops {
				t.Fatal("no overload: the test tests nothing")
			}
			if n := icmpSent(t, right) - before; (n == 0) != silent[i] {
				t.Errorf("%s: the kernel has sent %d ICMP errors about pair %d", name, n, i)
			}
		}
	}
	second := pairs[1].route()
	check("not connected", true, true)
	must(t, g.Connect(), g.Connect())
	check("to the first", true, false)
	must(t, right.Do(func() error { return g.Guard.Connect(pairs[1].pair(), second) }))
	check("to the second", false, true)
	must(t, right.Do(g.Disconnect))
	check("disconnected", true, true)
	must(t, right.Do(g.Disconnect))
	check("again", true, true)
	must(t, g.Connect())
	check("to the first again", true, false)
	if err := left.Do(g.Disconnect); err == nil {
		t.Error("Disconnect works in another network namespace")
	}
	check("not disconnected", true, false)
	must(t, g.Close())
	if err := g.Disconnect(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Disconnect: %v, want %v", err, os.ErrClosed)
	}
}

// One ErrorSocket reports the errors about all pairs, or about one.
func TestE_Pairs(t *testing.T) {
	left, right := newPair(t)
	must(t, left.AddAddr("eth0", secondAddr.String()+"/24"))
	// Two pairs have the left host's address, and one another local one.
	configs := []config{leftEnd, {Local: leftAddr, Remote: far}, {Local: secondAddr, Remote: rightAddr}}
	s := newErrorSocket(t, left, leftEnd)
	send := func() {
		t.Helper()
		for i, cfg := range configs {
			e := hostUnreachable
			e.about, e.inner = cfg, []byte(fmt.Sprintf("of pair %d", i))
			e.send(t, left, right)
		}
	}
	check := func(want ...int) {
		t.Helper()
		var got []int
		for s.Poll() != 0 {
			must(t, s.ReadErrors(func(e rawsock.ICMPError) {
				i := slices.IndexFunc(configs, func(c config) bool { return c.pair() == e.Pair })
				if i < 0 || string(e.Inner) != fmt.Sprintf("of pair %d", i) {
					t.Errorf("%q is about %v", e.Inner, e.Pair)
				}
				got = append(got, i)
			}))
		}
		if !slices.Equal(got, want) {
			t.Errorf("reported pairs %v, want %v", got, want)
		}
	}
	send()
	check(0)
	must(t, s.SetPair(nil))
	send()
	check(0, 1, 2)
	udp := newMessage()
	quoteOf(udp).SetProtocol(packet.ProtoUDP)
	sendMessage(t, left, right, finish(udp), 1)
	if s.Poll() != 0 {
		t.Error("an error about UDP is in the buffer")
	}
	pair := configs[2].pair()
	send()
	must(t, s.SetPair(&pair)) // those about the others are there already
	pair = rawsock.Pair{}     // which is the caller's
	send()
	heard := readErrors(t, s)
	for range 2 {
		if got := labtest.Within(t, "the error", heard); got.Inner != "of pair 2" {
			t.Errorf("reported: %+v", got)
		}
	}
	if len(heard) > 0 {
		t.Errorf("reported: %+v", <-heard)
	}
	must(t, s.Close())
	if err := s.SetPair(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("SetPair after Close: %v, want %v", err, os.ErrClosed)
	}
}

// Until SetPair, an ErrorSocket receives nothing.
func TestE_NoPair(t *testing.T) {
	left, right := newPair(t)
	var s *rawsock.ErrorSocket
	must(t, left.Do(func() (err error) {
		s, err = rawsock.NewErrorSocket()
		return err
	}))
	defer s.Close()
	hostUnreachable.send(t, left, right)
	if s.Poll() != 0 {
		t.Error("an error is in the buffer")
	}
	must(t, s.SetPair(nil))
	hostUnreachable.send(t, left, right)
	got := 0
	must(t, s.ReadErrors(func(rawsock.ICMPError) { got++ }))
	if got != 1 {
		t.Errorf("%d errors, want 1", got)
	}
}

// A hot path with several pairs and Targets allocates nothing either.
func TestPairs_Allocs(t *testing.T) {
	labtest.Need(t, "bpf")
	left, right := newPair(t)
	pairs := ends(t, left, 4)
	r := newReceiver(t, right, pairs[0])
	refused := 0
	var s *rawsock.Sender
	must(t, left.Do(func() (err error) {
		s, err = rawsock.NewSender(netip.Addr{}, func(int, stats.Reason) { refused++ })
		return errors.Join(err, s.EnableHops())
	}))
	defer s.Close()
	var targets [5]rawsock.Target // the last one is not set
	var headers [5]packet.IPv4
	for i, cfg := range pairs {
		must(t, r.Add(cfg.pair()))
		route := rawsock.Route{Local: cfg.Remote, Remote: cfg.Local, TOS: 4 * uint8(i), Mark: uint32(i)}
		if i%2 == 1 {
			route.Hop = hopTo(t, left, right, "eth0")
		}
		targets[i].Set(route)
		headers[i] = outer(reverse(cfg), 100)
	}
	headers[4] = headers[0]
	payload := make([]byte, 100)
	n := 0
	work := func() bool {
		refused = 0
		want := 0
		for range rawsock.BatchSize {
			i := n % len(targets)
			n++
			s.Add(&targets[i], headers[i], payload)
			if i < len(pairs) {
				want++
			}
		}
		if s.Flush() != nil || refused != rawsock.BatchSize-want {
			return false
		}
		for want > 0 {
			packets, err := r.Receive()
			if err != nil {
				return false
			}
			for _, p := range packets {
				if p[19] != rightAddr.As4()[3] {
					return false
				}
			}
			want -= len(packets)
		}
		return want == 0
	}
	failed := false
	allocs := testing.AllocsPerRun(100, func() { failed = failed || !work() })
	if failed {
		t.Error("a run did not do its work")
	}
	if allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
}

// Connect is called often, and does nothing while nothing has changed.
func TestConnect_Allocs(t *testing.T) {
	_, right := newPair(t)
	r := newConnected(t, right, rightEnd)
	start := time.Now()
	allocs := testing.AllocsPerRun(1000, func() {
		if r.Connect() != nil {
			t.Error("not connected")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
	t.Logf("%v a call", time.Since(start)/1000)
}
