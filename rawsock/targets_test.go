package rawsock_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// One sender whose messages have different Targets.

// senderTo returns a sender whose messages need Targets of their own.
func senderTo(t testing.TB, h *netlab.Host, local netip.Addr) *sender {
	t.Helper()
	s := newSender(t, h, config{Local: local, Remote: rightAddr})
	must(t, h.Do(s.EnableHops))
	return s
}

// addRule has lookups that a rule is for use a route by a device.
func (l twoLinks) addRule(t *testing.T, table int, device, gateway string, change func(*netlink.Rule)) {
	t.Helper()
	must(t, l.left.Netlink().RouteAdd(&netlink.Route{
		Dst: netlink.NewIPNet(l.cfg.Remote.AsSlice()), Table: table,
		LinkIndex: deviceIndex(t, l.left, device), Gw: netip.MustParseAddr(gateway).AsSlice(),
	}))
	r := netlink.NewRule()
	r.Table, r.Priority, r.Family = table, table, netlink.FAMILY_V4
	change(r)
	must(t, l.left.Netlink().RuleAdd(r))
}

// Messages of one batch leave each by its own Route: by source, device, TOS, mark and
// hop, in order, with that mark and no priority, and those that cannot are refused alone.
func TestTarget_Mixed(t *testing.T) {
	l := newTwoLinks(t)
	const gateway = "10.0.1.2"
	sourceAddr, otherAddr := netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.9.9.9")
	must(t, l.left.AddAddr("lo", otherAddr.String()+"/32"))
	l.addRule(t, 101, "eth1", gateway, func(r *netlink.Rule) { r.Mark = 7 })
	l.addRule(t, 102, "eth1", gateway, func(r *netlink.Rule) { r.Tos = 0x10 })
	l.addRule(t, 103, "eth1", gateway, func(r *netlink.Rule) { r.Src = netlink.NewIPNet(sourceAddr.AsSlice()) })
	l.addRule(t, 104, "eth1", gateway, func(r *netlink.Rule) { r.IPProto, r.Mark = packet.ProtoIPIP, 9 })
	eth0, eth1 := deviceIndex(t, l.left, "eth0"), deviceIndex(t, l.left, "eth1")
	hop0, hop1 := hopTo(t, l.left, l.right, "eth0"), hopTo(t, l.left, l.right, "eth1")
	remote := l.cfg.Remote
	routes := []struct {
		name   string
		route  rawsock.Route
		device string // that it leaves by; none: refused
	}{
		{"plain", rawsock.Route{Remote: remote}, "eth0"},
		{"again", rawsock.Route{Remote: remote}, "eth0"},
		{"source", rawsock.Route{Local: sourceAddr, Remote: remote}, "eth1"},
		{"another source", rawsock.Route{Local: otherAddr, Remote: remote}, "eth0"},
		{"device", rawsock.Route{Local: leftAddr, Remote: remote, Device: eth1}, "eth1"},
		{"device and source", rawsock.Route{Local: sourceAddr, Remote: remote, Device: eth0}, "eth0"},
		{"mark", rawsock.Route{Remote: remote, Mark: 7}, "eth1"},
		{"another mark", rawsock.Route{Remote: remote, Mark: 0xfffffff8}, "eth0"},
		{"mark and device", rawsock.Route{Local: leftAddr, Remote: remote, Mark: 7, Device: eth0}, "eth0"}, // the lookup goes on with the next table
		{"protocol", rawsock.Route{Remote: remote, Mark: 9}, "eth1"},
		{"TOS", rawsock.Route{Remote: remote, TOS: 0x10}, "eth1"},
		{"another TOS", rawsock.Route{Remote: remote, TOS: 0xb8}, "eth0"},
		{"all", rawsock.Route{Local: sourceAddr, Remote: remote, TOS: 0x10, Mark: 7, Device: eth1}, "eth1"},
		{"hop", rawsock.Route{Remote: remote, Hop: hop0}, "eth0"},
		{"another hop", rawsock.Route{Remote: remote, Hop: hop1}, "eth1"},
		{"all and a hop", rawsock.Route{Local: leftAddr, Remote: remote, TOS: 0xb8, Mark: 7, Hop: hop0}, "eth0"},
		{"no device", rawsock.Route{Local: leftAddr, Remote: remote, Device: noSuchDevice}, ""},
		{"no device for a hop", rawsock.Route{Remote: remote, Hop: &rawsock.Hop{Device: noSuchDevice}}, ""},
		{"no route", rawsock.Route{Remote: far}, ""},
		{"not set", rawsock.Route{}, ""},
	}

	s := senderTo(t, l.left, leftAddr)
	g := startReceiving(newReceiver(t, l.right, config{Local: remote, Remote: leftAddr}))
	seen := map[string]watch{"eth0": watchMetadata(t, l.left, "eth0"), "eth1": watchMetadata(t, l.left, "eth1")}
	targets := make([]rawsock.Target, len(routes))
	for i := range routes {
		if routes[i].name != "not set" {
			targets[i].Set(routes[i].route)
		}
	}
	want := map[string][]metadata{}
	rng := rand.New(rand.NewPCG(9, 9))
	for batch := range 8 {
		var payloads []string
		var refusals []refusal
		s.refusals = nil
		for i := range rawsock.BatchSize {
			n := rng.IntN(len(routes))
			if i == 1 || batch == 0 && i < len(routes) {
				n = i
			}
			r := routes[n]
			payload := fmt.Sprint(batch, " ", i, " ", r.name)
			s.Sender.Add(&targets[n], outer(config{Local: leftAddr, Remote: remote}, len(payload)), []byte(payload))
			if r.device == "" {
				refusals = append(refusals, refusal{i, stats.NoRoute})
				continue
			}
			payloads = append(payloads, payload)
			want[r.device] = append(want[r.device], metadata{Mark: r.route.Mark})
		}
		must(t, s.Flush())
		if diff := cmp.Diff(refusals, s.refusals); diff != "" {
			t.Fatalf("refusals (-want +got):\n%s", diff)
		}
		g.check(t, payloads...)
	}
	for device, w := range seen {
		if diff := cmp.Diff(want[device], w.all(t)); diff != "" {
			t.Errorf("packets by %s (-want +got):\n%s", device, diff)
		}
	}
}

// A Route may change between batches, at every place of the batch.
func TestTarget_Changes(t *testing.T) {
	l := newTwoLinks(t)
	s := senderTo(t, l.left, leftAddr)
	g := startReceiving(newReceiver(t, l.right, config{Local: l.cfg.Remote, Remote: leftAddr}))
	remote := l.cfg.Remote
	eth0, eth1 := deviceIndex(t, l.left, "eth0"), deviceIndex(t, l.left, "eth1")
	seen := map[string]watch{"eth0": watchMetadata(t, l.left, "eth0"), "eth1": watchMetadata(t, l.left, "eth1")}
	hop := hopTo(t, l.left, l.right, "eth1")
	routes := []rawsock.Route{
		{Remote: remote},
		{Local: leftAddr, Remote: remote, Device: eth1},
		{Local: leftAddr, Remote: remote, Device: eth0, Mark: 1},
		{Local: leftAddr, Remote: remote, Device: eth1, Mark: 2, TOS: 0x10},
		{Remote: remote, Hop: hop},
		{Remote: remote, Hop: hop, Mark: 3},
		{},
		{Remote: remote, TOS: 0x10},
	}
	devices := []string{"eth0", "eth1", "eth0", "eth1", "eth1", "eth1", "", "eth0"}
	want := map[string][]metadata{}
	var target rawsock.Target
	for i := range 3 * len(routes) {
		n := i % len(routes)
		target.Set(routes[n])
		if routes[n].Hop != nil {
			*hop = rawsock.Hop{} // which is the caller's
		}
		s.refusals = nil
		var payloads []string
		for j := range 1 + i%rawsock.BatchSize {
			payload := fmt.Sprint(i, " ", j)
			s.Sender.Add(&target, outer(config{Local: leftAddr, Remote: remote}, len(payload)), []byte(payload))
			payloads = append(payloads, payload)
			if devices[n] != "" {
				want[devices[n]] = append(want[devices[n]], metadata{Mark: routes[n].Mark})
			}
		}
		must(t, s.Flush())
		*hop = *hopTo(t, l.left, l.right, "eth1")
		if devices[n] == "" {
			if len(s.refusals) != len(payloads) || s.refusals[0] != (refusal{0, stats.NoRoute}) {
				t.Errorf("refusals without a Route: %+v", s.refusals)
			}
			continue
		}
		if len(s.refusals) > 0 {
			t.Fatalf("route %+v: refused: %+v", routes[n], s.refusals)
		}
		g.check(t, payloads...)
	}
	for device, w := range seen {
		if diff := cmp.Diff(want[device], w.all(t)); diff != "" {
			t.Errorf("packets by %s (-want +got):\n%s", device, diff)
		}
	}
}

// Without EnableHops the raw socket takes what has a Hop.
func TestTarget_HopWithoutPacketSocket(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	s.setHop(&rawsock.Hop{Device: noSuchDevice})
	g := startReceiving(newConnected(t, right, rightEnd))
	s.mustSend(t, "by the raw socket")
	g.check(t, "by the raw socket")
}

// A sender that is not bound, and one that is bound to an address that is not there.
func TestTarget_Local(t *testing.T) {
	left, right := newPair(t)
	must(t, left.AddAddr("eth0", secondAddr.String()+"/24"))
	g := startReceiving(newReceiver(t, right, rightEnd))
	for _, local := range []netip.Addr{{}, leftAddr, thirdAddr} {
		s := newSender(t, left, leftEnd)
		must(t, left.Do(func() (err error) {
			s.Sender, err = rawsock.NewSender(local, func(i int, why stats.Reason) { t.Errorf("%v: refused: %v", local, why) })
			return err
		}))
		for _, source := range []netip.Addr{{}, leftAddr, secondAddr} {
			s.to.Set(rawsock.Route{Local: source, Remote: rightAddr})
			payload := fmt.Sprint("bound to ", local, ", looked up from ", source)
			s.mustSend(t, payload)
			g.check(t, payload) // with the source that the header has
		}
		must(t, s.Sender.Close())
	}
}

// Messages whose device goes away are refused, and none leaves by another one; the others
// of the batch are sent.
func TestHazard7_DeviceDeleted(t *testing.T) {
	l := newTwoLinks(t)
	s := senderTo(t, l.left, leftAddr)
	g := startReceiving(newReceiver(t, l.right, config{Local: l.cfg.Remote, Remote: leftAddr}))
	eth1 := deviceIndex(t, l.left, "eth1")
	var device, plain, hop rawsock.Target
	device.Set(rawsock.Route{Local: leftAddr, Remote: l.cfg.Remote, Device: eth1})
	plain.Set(rawsock.Route{Remote: l.cfg.Remote})
	hop.Set(rawsock.Route{Remote: l.cfg.Remote, Hop: hopTo(t, l.left, l.right, "eth1")})
	targets := []*rawsock.Target{&device, &plain, &hop}
	send := func() (payloads []string) {
		t.Helper()
		s.refusals = nil
		for i := range 12 {
			payload := fmt.Sprint(i)
			s.Sender.Add(targets[i%3], outer(config{Local: leftAddr, Remote: l.cfg.Remote}, len(payload)), []byte(payload))
			payloads = append(payloads, payload)
		}
		must(t, s.Flush())
		return payloads
	}
	g.check(t, send()...)
	must(t, l.left.DeleteLink("eth1"))
	send()
	g.check(t, "1", "4", "7", "10")
	var want []refusal
	for i := range 12 {
		if i%3 != 1 {
			want = append(want, refusal{i, stats.NoRoute})
		}
	}
	if diff := cmp.Diff(want, s.refusals); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
}

// A Route that is set while Flush waits for room is that of the rest, of its Target alone.
func TestHazard3_TargetsWhileWaiting(t *testing.T) {
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
	wires := map[string]*netlab.Capture{}
	for _, device := range []string{"eth0", "eth1"} {
		wire, err := right.Capture(device)
		must(t, err)
		wires[device] = wire
	}
	slow(t, left, "eth0", 20000, 1<<30)
	// Two Targets in alternation, of which one changes.
	other := new(rawsock.Target)
	other.Set(leftEnd.route())
	targets := []*rawsock.Target{s.to, other}
	for i := range rawsock.BatchSize {
		header := append(outer(s.cfg, 4+largePadding), fmt.Sprintf("%4d", i)...)
		s.Sender.Add(targets[i%2], header, make([]byte, largePadding))
	}
	done := make(chan error, 1)
	go func() { done <- s.Flush() }()
	labtest.WaitParked(t, "rawsock.(*Sender).Flush", 1)
	s.setHop(hopTo(t, left, right, "eth1"))
	slow(t, left, "eth0", 20<<20, 1<<30)
	ping(t, left, rightAddr) // has the link look at its queue at once, which ends the wait
	must(t, labtest.Within(t, "Flush", done))
	if len(s.refusals) > 0 {
		t.Errorf("refusals: %+v", s.refusals)
	}
	arrived := map[int]bool{}
	for len(arrived) < rawsock.BatchSize {
		arrived[number(t, g.next(t))] = true
	}
	var by map[string][]int
	labtest.WaitFor(t, "captures of all packets", func() bool {
		by = map[string][]int{}
		for device, wire := range wires {
			for _, c := range wire.Packets() {
				if p := packet.IPv4(c.Data); p.Protocol() == packet.ProtoIPIP {
					by[device] = append(by[device], number(t, p))
				}
			}
		}
		return len(by["eth0"])+len(by["eth1"]) == rawsock.BatchSize
	})
	for device := range wires {
		if !slices.IsSorted(by[device]) {
			t.Errorf("packets by %s: %v", device, by[device])
		}
	}
	last := rawsock.BatchSize - 1 // of the other Target
	if !slices.Contains(by["eth0"], last) || !slices.Contains(by["eth1"], last-1) {
		t.Errorf("packets left by %v", by)
	}
	for _, i := range by["eth1"] {
		if i%2 != 0 {
			t.Errorf("packet %d left by the hop of another Target", i)
		}
	}
}

// Other goroutines may set Routes at any time. This is for the race detector, above all.
func TestTarget_Concurrent(t *testing.T) {
	left, right := newPair(t)
	s := senderTo(t, left, leftAddr)
	g := startReceiving(newConnected(t, right, rightEnd))
	routes := []rawsock.Route{
		{Remote: rightAddr},
		{Local: leftAddr, Remote: rightAddr, Device: deviceIndex(t, left, "eth0")},
		{Remote: rightAddr, Hop: hopTo(t, left, right, "eth0")},
		{Remote: rightAddr, Mark: 1, TOS: 8},
	}
	var targets [3]rawsock.Target
	for i := range targets {
		targets[i].Set(routes[i])
	}
	stop := make(chan struct{})
	var setting sync.WaitGroup
	for i := range targets {
		setting.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
					targets[i].Set(routes[n%len(routes)])
				}
			}
		})
	}
	missing := map[string]bool{}
	for n := 0; n < 3000; {
		for range rawsock.BatchSize {
			p := fmt.Sprint(n)
			s.Sender.Add(&targets[n%len(targets)], outer(leftEnd, len(p)), []byte(p))
			missing[p] = true
			n++
		}
		must(t, s.Flush())
	}
	close(stop)
	setting.Wait()
	if len(s.refusals) > 0 {
		t.Fatalf("refused: %+v", s.refusals)
	}
	for len(missing) > 0 {
		p := string(g.next(t).Payload())
		if !missing[p] {
			t.Fatalf("received %q again", p)
		}
		delete(missing, p)
	}
}

// To set the Route that is there makes nothing new.
func TestTargetSet_Allocs(t *testing.T) {
	var target rawsock.Target
	hop := rawsock.Hop{Device: 1, Addr: [6]byte{2}}
	route := rawsock.Route{Local: leftAddr, Remote: rightAddr, TOS: 4, Mark: 5, Hop: &hop}
	target.Set(route)
	if allocs := testing.AllocsPerRun(100, func() {
		same := hop
		route.Hop = &same
		target.Set(route)
	}); allocs != 1 { // the Hop of this test
		t.Errorf("%v allocations a run, want 1", allocs)
	}
}

// Which control messages the kernel takes follows from its version.
func TestKernelControl(t *testing.T) {
	protocol, priority, err := rawsock.KernelControl()
	must(t, err)
	var name unix.Utsname
	must(t, unix.Uname(&name))
	var major, minor int
	_, err = fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	must(t, err)
	version := 1000*major + minor
	if want := version >= 6004; protocol != want {
		t.Errorf("IP_PROTOCOL is taken: %v, want %v by version %d.%d", protocol, want, major, minor)
	}
	if want := version >= 6014; priority != want {
		t.Errorf("SO_PRIORITY is taken: %v, want %v by version %d.%d", priority, want, major, minor)
	}
}
