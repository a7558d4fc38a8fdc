package underlay_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/underlay"
)

// counter is a Follower that counts its calls.
type counter struct {
	paths, links, settled atomic.Int64
	sent                  atomic.Uint64
	path                  atomic.Pointer[underlay.Path]
	onPath, onSettle      func() // may be nil
}

func (c *counter) PathChanged(p underlay.Path) {
	c.path.Store(&p)
	c.paths.Add(1)
	if c.onPath != nil {
		c.onPath()
	}
}

func (c *counter) LinkChanged(underlay.Link, bool) { c.links.Add(1) }
func (c *counter) Sent() uint64                    { return c.sent.Load() }

func (c *counter) Settle() {
	c.settled.Add(1)
	if c.onSettle != nil {
		c.onSettle()
	}
}

// many is how many Followings a crowd usually has.
const many = 1000

// crowd is a host with a default route, and a Watcher that follows the paths to many
// remote addresses by it.
type crowd struct {
	host, router *netlab.Host
	w            *underlay.Watcher
	followers    []*counter
	followings   []*underlay.Following
	start        time.Time
}

func newCrowd(t testing.TB, n int) *crowd {
	t.Helper()
	lab := labtest.New(t)
	c := &crowd{}
	var err error
	if c.host, err = lab.Host("host"); err != nil {
		t.Fatal(err)
	}
	if c.router, err = lab.Host("router"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		lab.Veth(c.host, "eth0", c.router, "a0"),
		c.host.AddAddr("eth0", "192.168.6.101/24"),
		c.router.AddAddr("a0", "192.168.6.1/24"),
		c.host.AddRoute("0.0.0.0/0", "192.168.6.1"),
		c.host.Do(func() (err error) {
			c.w, err = underlay.Open(slog.New(slog.DiscardHandler))
			return err
		}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.w.Close)
	for i := range n {
		c.follow(underlay.Query{Local: local, Remote: remoteOf(i), NextHop: true})
	}
	c.start = time.Now()
	return c
}

func (c *crowd) follow(q underlay.Query) *counter {
	f := &counter{}
	c.followers = append(c.followers, f)
	c.followings = append(c.followings, c.w.Follow(q, f))
	return f
}

func remoteOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}) }

// settled returns how many lookups have been settled, of all Followings.
func (c *crowd) settled() (n int) {
	for _, f := range c.followers {
		n += int(f.settled.Load())
	}
	return n
}

func (c *crowd) paths() (n int) {
	for _, f := range c.followers {
		n += int(f.paths.Load())
	}
	return n
}

// polled returns how many lookups the polls since the start come to, at most.
func (c *crowd) polled() int {
	polls := int(time.Since(c.start)/time.Second) + 2
	return polls * (len(c.followers)/60 + 10)
}

// waitAll waits until cond holds for the path of each Follower.
func (c *crowd) waitAll(t testing.TB, what string, cond func(*underlay.Path) bool) {
	t.Helper()
	labtest.WaitFor(t, what, func() bool {
		for _, f := range c.followers {
			if !cond(f.path.Load()) {
				return false
			}
		}
		return true
	})
}

// An event leads to lookups for the remote addresses that its route covers, or for the
// Followings that depend on its link, address or name, and for no others.
func TestScale_EventsConcernFew(t *testing.T) {
	c := newCrowd(t, many)
	ip(t, c.host, []string{
		"link add d0 type veth peer name e0", "link set d0 up", "addr add 10.3.0.1/32 dev d0",
		"link add d1 type veth peer name e1", "link set d1 up",
	})
	d0, err := c.host.Netlink().LinkByName("d0")
	if err != nil {
		t.Fatal(err)
	}
	other := remoteOf(many)
	byAddr := c.follow(underlay.Query{Local: netip.MustParseAddr("10.3.0.2"), Remote: other})
	byLink := c.follow(underlay.Query{Local: local, Remote: other, Link: d0.Attrs().Index})
	byName := c.follow(underlay.Query{Local: local, Remote: other, Device: "other"})
	c.waitAll(t, "the paths", func(p *underlay.Path) bool { return p != nil })
	paths, before := c.paths(), c.settled()
	changes := 0
	step := func(f *counter, line string, changed func() bool) {
		t.Helper()
		ip(t, c.host, []string{line})
		labtest.WaitFor(t, line, changed)
		changes++
		if got := c.paths() - paths; got > 2*changes { // of an address, before the lookup and after
			t.Errorf("%s: %d new Paths since the start, want %d at most", line, got, 2*changes)
		}
	}
	one := c.followers[77]
	for range 3 {
		step(one, "route add 172.16.0.77/32 via 192.168.6.1 mtu 1300", func() bool { return one.path.Load().MTU == 1300 })
		step(one, "route del 172.16.0.77/32", func() bool { return one.path.Load().MTU == 1500 })
		step(byAddr, "addr add 10.3.0.2/32 dev d0", func() bool { return !byAddr.path.Load().LocalMissing })
		step(byAddr, "addr del 10.3.0.2/32 dev d0", func() bool { return byAddr.path.Load().LocalMissing })
		links := byLink.links.Load()
		step(byLink, "link set d0 mtu 1400", func() bool { return byLink.links.Load() > links })
		step(byLink, "link set d0 mtu 1500", func() bool { return byLink.links.Load() > links+1 })
	}
	step(byName, "link property add dev d1 altname other", func() bool { return byName.path.Load().Bound != 0 })
	step(byName, "link del d1", func() bool { return byName.path.Load().Bound == 0 })
	if got, most := c.settled()-before, 4*changes+c.polled(); got > most {
		t.Errorf("%d lookups for %d events, want at most %d", got, changes, most)
	}
	for i, f := range c.followers {
		if f != byLink && f.links.Load() > 0 {
			t.Fatalf("Follower %d heard of another one's link", i)
		}
	}
}

// Routes that cover no remote address lead to no lookup, however many change.
func TestScale_ManyRoutes(t *testing.T) {
	c := newCrowd(t, many)
	before := c.settled()
	ip(t, c.host, append(routes(5000), "route add 172.16.0.1/32 via 192.168.6.1 mtu 1300"))
	labtest.WaitFor(t, "the last route to be known", func() bool { return c.followers[1].path.Load().MTU == 1300 })
	if got, most := c.settled()-before, 1+c.polled(); got > most {
		t.Errorf("%d lookups, want at most %d", got, most)
	}
}

// routes returns lines that add and delete n routes.
func routes(n int) (lines []string) {
	for _, verb := range []string{"add", "del"} {
		for i := range n {
			lines = append(lines, fmt.Sprintf("route %s 10.5.%d.%d/32 dev eth0", verb, i>>8, i&255))
		}
	}
	return lines
}

// A change of the default route reaches all. A storm of events that concern all leads to
// a bounded number of lookups, and the last change still arrives.
func TestScale_Storm(t *testing.T) {
	c := newCrowd(t, many)
	for mtu, line := range map[int]string{1400: " mtu 1400", 1500: ""} {
		ip(t, c.host, []string{"route change default via 192.168.6.1" + line})
		c.waitAll(t, fmt.Sprint("paths of ", mtu), func(p *underlay.Path) bool { return p.MTU == mtu })
	}
	before, start := c.settled(), time.Now()
	for time.Since(start) < 3*time.Second {
		for _, f := range c.followings {
			f.Doubt()
		}
		time.Sleep(time.Millisecond)
	}
	got, most := c.settled()-before, underlay.LookupsBurst+int(underlay.LookupsPerSecond*time.Since(start).Seconds())+2*many
	if got > most || got < many {
		t.Errorf("%d lookups in %v, want %d to %d", got, time.Since(start), many, most)
	}
	ip(t, c.host, []string{"route change default via 192.168.6.1 mtu 1300"})
	c.waitAll(t, "the last route", func(p *underlay.Path) bool { return p.MTU == 1300 })
}

// Without events, each poll looks up the paths that were used since the one before, and a
// few of the others.
func TestScale_Idle(t *testing.T) {
	c := newCrowd(t, many)
	inUse := c.followers[500:503]
	c.followers = append(c.followers[:500:500], c.followers[503:]...)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				for _, f := range inUse {
					f.sent.Add(1)
				}
			}
		}
	}()
	once := c.followers[300]
	once.sent.Add(1)
	before, requests := map[*counter]int64{}, c.w.Requests()
	for _, f := range c.followers {
		before[f] = f.settled.Load()
	}
	labtest.WaitFor(t, "three polls", func() bool {
		return inUse[0].settled.Load() >= 3 && inUse[1].settled.Load() >= 3 && inUse[2].settled.Load() >= 3
	})
	polls := int(inUse[0].settled.Load())
	const perPoll = many/60 + 1 // of the others
	idle := 0
	for i, f := range c.followers {
		n := int(f.settled.Load() - before[f])
		if f == once {
			n--
		}
		if idle += n; n > 1 {
			t.Errorf("the idle path %d was looked up %d times", i, n)
		}
	}
	if idle > perPoll*(polls+1) || idle < perPoll*(polls-1) {
		t.Errorf("%d lookups of idle paths in %d polls, want %d in each", idle, polls, perPoll)
	}
	if got := c.w.Requests() - requests; got > 2*(perPoll+len(inUse))*(polls+1) {
		t.Errorf("%d requests in %d polls, want two for each lookup", got, polls)
	}
}

// Polls come round to every idle path.
func TestScale_IdleRotation(t *testing.T) {
	c := newCrowd(t, 25)
	labtest.WaitFor(t, "each path to be looked up twice", func() bool {
		for _, f := range c.followers {
			if f.settled.Load() < 2 {
				return false
			}
		}
		return true
	})
}

// Retry leads to another Settle with the next poll, and not before.
func TestScale_Retry(t *testing.T) {
	c := newCrowd(t, many)
	var f *underlay.Following
	ready := make(chan struct{})
	retrying := &counter{onSettle: func() { <-ready; f.Retry() }}
	f = c.w.Follow(underlay.Query{Local: local, Remote: remoteOf(many)}, retrying)
	close(ready)
	f.Retry()
	start := time.Now()
	labtest.WaitFor(t, "a path to be settled thrice", func() bool { return retrying.settled.Load() >= 3 })
	if n, polls := retrying.settled.Load(), time.Since(start)/time.Second+2; n > int64(polls) {
		t.Errorf("settled %d times in %d polls", n, polls)
	}
}

// Doubt may be called with the Watcher locked.
func TestDoubt_FromWithin(t *testing.T) {
	c := newCrowd(t, 1)
	doubting := &counter{}
	var f atomic.Pointer[underlay.Following]
	doubting.onPath = func() {
		if f := f.Load(); f != nil {
			f.Doubt()
		}
	}
	f.Store(c.w.Follow(underlay.Query{Local: local, Remote: remoteOf(1)}, doubting))
	c.w.FollowAddresses(func([]netip.Addr) { f.Load().Doubt() })
	ip(t, c.host, []string{"route change default via 192.168.6.1 mtu 1300", "addr add 10.3.0.1/32 dev eth0"})
	labtest.WaitFor(t, "the path", func() bool { return doubting.path.Load().MTU == 1300 })
}

// A change of the addresses is one call, not one for each Following. An address that two
// links have is there until both have lost it.
func TestFollowAddresses(t *testing.T) {
	c := newCrowd(t, many)
	var calls atomic.Int64
	var own atomic.Pointer[[]netip.Addr]
	c.w.FollowAddresses(func(a []netip.Addr) { calls.Add(1); own.Store(&a) })
	if own.Load() == nil || len(*own.Load()) != 2 {
		t.Fatalf("at once: %v, want two addresses", own.Load())
	}
	const n = 100
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("addr add 10.4.0.%d/32 dev eth0", i+1))
	}
	ip(t, c.host, lines)
	labtest.WaitFor(t, "all addresses", func() bool { return len(*own.Load()) == n+2 })
	if calls.Load() > n+1 {
		t.Errorf("%d calls for %d changes", calls.Load(), n)
	}
	before, paths := calls.Load(), c.paths()
	ip(t, c.host, []string{
		"addr add 10.4.0.1/32 dev lo", "addr del 10.4.0.1/32 dev eth0",
		"addr add 192.168.6.101/32 dev lo", "addr del 192.168.6.101/32 dev lo",
		"addr add 10.4.1.1/32 dev eth0",
	})
	labtest.WaitFor(t, "the last address", func() bool { return len(*own.Load()) == n+3 })
	if got := calls.Load() - before; got != 1 {
		t.Errorf("%d calls for one new address", got)
	}
	if got := c.paths() - paths; got != 0 {
		t.Errorf("%d Paths changed with addresses that are none of theirs", got)
	}
	ip(t, c.host, []string{"addr del 10.4.0.1/32 dev lo"})
	labtest.WaitFor(t, "its end", func() bool { return len(*own.Load()) == n+2 })
}

// An event that repeats what is known of a neighbour leads to no lookup, one with another
// link-layer address to that of all paths.
func TestScale_Neighbour(t *testing.T) {
	c := newCrowd(t, many)
	set := func(addr byte, state string) string {
		return fmt.Sprintf("neigh replace 192.168.6.1 lladdr 02:00:00:00:00:%02x dev eth0 nud %s", addr, state)
	}
	known := func(addr byte) {
		t.Helper()
		c.waitAll(t, "the neighbour", func(p *underlay.Path) bool { return p.HopReason == "" && p.Hop.Addr[5] == addr })
	}
	ip(t, c.host, []string{set(1, "permanent")})
	known(1)
	before := c.settled()
	var lines []string
	for range 10 {
		lines = append(lines, set(1, "noarp"), set(1, "permanent"), set(1, "stale"))
	}
	ip(t, c.host, append(lines, set(1, "permanent"), "addr add 10.3.0.1/32 dev eth0"))
	labtest.WaitFor(t, "the events to be read", func() bool { return len(c.w.Own()) == 3 })
	if got, most := c.settled()-before, c.polled(); got > most {
		t.Errorf("%d lookups for a neighbour that stays, want at most %d", got, most)
	}
	ip(t, c.host, []string{set(2, "permanent")})
	known(2)
	ip(t, c.host, []string{"neigh del 192.168.6.1 dev eth0"})
	c.waitAll(t, "the neighbour's end", func(p *underlay.Path) bool { return p.HopReason != "" })
}

// A neighbour that turns stale while packets are sent is probed at once.
func TestFollowing_StaleNeighbour(t *testing.T) {
	c := newCrowd(t, 1)
	f := c.followers[0]
	state := func(nud string) {
		ip(t, c.host, []string{"neigh replace 192.168.6.1 lladdr 02:00:00:00:00:01 dev eth0 nud " + nud})
	}
	state("permanent")
	c.waitAll(t, "the neighbour", func(p *underlay.Path) bool { return p.HopReason == "" })
	state("stale")
	rounds, settled := 0, f.settled.Load()
	labtest.WaitFor(t, "more probes than there are polls meanwhile", func() bool {
		if rounds == 0 || f.settled.Load() > settled {
			rounds++
			state("permanent")
			f.sent.Add(1)
			settled = f.settled.Load()
			state("stale")
		}
		return rounds > 30
	})
}

// A carrier takes routes with it and brings them back, without an event about them.
func TestScale_Carrier(t *testing.T) {
	c := newCrowd(t, many)
	if err := c.host.Sysctl("net.ipv4.conf.eth0.ignore_routes_with_linkdown", "1"); err != nil {
		t.Fatal(err)
	}
	ip(t, c.router, []string{"link set a0 down"})
	c.waitAll(t, "no route", func(p *underlay.Path) bool { return p.Reason != "" })
	ip(t, c.router, []string{"link set a0 up"})
	c.waitAll(t, "the route", func(p *underlay.Path) bool { return p.Reason == "" })
}

// A closed Following is neither looked up nor indexed.
func TestScale_Close(t *testing.T) {
	c := newCrowd(t, many)
	for _, f := range c.followings[1:] {
		f.Close()
	}
	open := c.followers[0]
	c.followers = c.followers[1:]
	before := c.settled()
	ip(t, c.host, []string{"route change default via 192.168.6.1 mtu 1300", "addr del 192.168.6.101/24 dev eth0"})
	labtest.WaitFor(t, "the change", func() bool { return open.path.Load().LocalMissing })
	if got := c.settled(); got != before {
		t.Errorf("%d lookups of what was closed", got-before)
	}
	c.followings[0].Close()
	c.followings[0].Close()
	if n := c.w.Indexed(); n != 0 {
		t.Errorf("%d entries are left of what was closed", n)
	}
}
