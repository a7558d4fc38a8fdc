package underlay_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/underlay"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// follower remembers what it was told last.
type follower struct {
	mu   sync.Mutex
	path underlay.Path
	own  []netip.Addr
}

func (f *follower) PathChanged(p underlay.Path) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path = p
}

func (f *follower) setOwn(own []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own = own
}

func (f *follower) LinkChanged(underlay.Link, bool) {}
func (f *follower) Sent() uint64                    { return 0 }
func (f *follower) Settle()                         {}

func (f *follower) knows() (underlay.Path, []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.path, f.own
}

var (
	local  = netip.MustParseAddr("192.168.6.101")
	remote = netip.MustParseAddr("192.168.8.101")
)

// watched is a host with a link to a router, through which a Watcher follows remote.
type watched struct {
	host, router *netlab.Host
	w            *underlay.Watcher
	f            follower
}

func watch(t *testing.T) *watched {
	t.Helper()
	lab := labtest.New(t)
	s := &watched{}
	var err error
	if s.host, err = lab.Host("host"); err != nil {
		t.Fatal(err)
	}
	if s.router, err = lab.Host("router"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		lab.Veth(s.host, "eth0", s.router, "a0"),
		s.host.AddAddr("eth0", "192.168.6.101/24"),
		s.router.AddAddr("a0", "192.168.6.1/24"),
		s.host.AddRoute("192.168.8.0/24", "192.168.6.1"),
		s.host.Do(func() (err error) {
			s.w, err = underlay.Open(slog.New(slog.DiscardHandler))
			return err
		}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.w.Close)
	s.w.FollowAddresses(s.f.setOwn)
	s.w.Follow(underlay.Query{
		Local: local, Remote: remote, NextHop: true,
		Probe: func(int) (int, netip.Addr, error) { return 1500, local, nil },
	}, &s.f)
	return s
}

// ip runs ip(8) on a host, with many command lines at once.
func ip(t testing.TB, host *netlab.Host, lines []string) {
	t.Helper()
	labtest.Need(t, "ip")
	batch := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(batch, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Output("ip", "-batch", batch); err != nil {
		t.Fatal(err)
	}
}

func (s *watched) waitMTU(t *testing.T, mtu int) {
	t.Helper()
	labtest.WaitFor(t, fmt.Sprint("a path of ", mtu), func() bool {
		p, _ := s.f.knows()
		return p.MTU == mtu && p.Reason == ""
	})
}

// An event about something else costs nothing but its reading: no list of links or
// addresses is asked for again.
func TestHazard17_EventsAskForNothing(t *testing.T) {
	s := watch(t)
	const links, events = 100, 1000
	var lines []string
	for i := range links {
		lines = append(lines, fmt.Sprintf("link add d%d type veth peer name e%d", i, i))
	}
	ip(t, s.host, lines)
	lines = nil
	for i := range events {
		lines = append(lines, fmt.Sprintf("addr add 10.1.%d.%d/32 dev d%d", i/250, i%250+1, i%links))
	}
	for i := range events {
		lines = append(lines, fmt.Sprintf("addr del 10.1.%d.%d/32 dev d%d", i/250, i%250+1, i%links))
	}
	lines = append(lines, "addr add 10.2.0.1/32 dev d1")
	before, start := s.w.Requests(), time.Now()
	ip(t, s.host, lines)
	labtest.WaitFor(t, "the last address to be known", func() bool {
		_, own := s.f.knows()
		return len(own) == 3 && own[0] == netip.MustParseAddr("10.2.0.1") // and lo's
	})
	asked, polls := s.w.Requests()-before, int(time.Since(start)/time.Second)+2
	t.Logf("%d requests for %d events in %v", asked, len(lines), time.Since(start))
	const perPoll = 4
	if asked > perPoll*polls {
		t.Errorf("%d requests for events that do not concern the path, want at most %d", asked, perPoll*polls)
	}
}

// The listener survives lost events and messages that are none, and afterwards knows
// what there is.
func TestHazard14_LostEvents(t *testing.T) {
	s := watch(t)
	events := s.w.EventSocket()
	if err := events.SetReceiveBufferSize(1, false); err != nil { // as small as there is
		t.Fatal(err)
	}
	pid, err := events.GetPid()
	if err != nil {
		t.Fatal(err)
	}
	var want []netip.Addr
	for round := range 3 {
		var lines []string
		for i := range 300 {
			addr := netip.AddrFrom4([4]byte{10, byte(round), byte(i / 250), byte(i%250 + 1)})
			want = append(want, addr)
			lines = append(lines, fmt.Sprintf("addr add %v/32 dev eth0", addr), fmt.Sprintf("route add 10.99.%d.%d/32 dev eth0", round, i%250))
			if i >= 250 {
				lines = lines[:len(lines)-1]
			}
		}
		ip(t, s.host, lines)
		if err := s.host.Do(func() error { return noise(int(pid)) }); err != nil {
			t.Fatal(err)
		}
		for mtu, line := range map[int]string{1300: " mtu 1300", 1500: ""} {
			ip(t, s.host, []string{"route change 192.168.8.0/24 via 192.168.6.1" + line})
			s.waitMTU(t, mtu)
		}
	}
	want = append(want, netip.MustParseAddr("127.0.0.1"), local)
	slices.SortFunc(want, netip.Addr.Compare)
	labtest.WaitFor(t, "all addresses to be known", func() bool { return slices.Equal(s.w.Own(), want) })
}

// noise sends messages to a netlink socket that do not come from the kernel, or are
// shorter than a header.
func noise(pid int) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer s.Close()
	forged := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	forged.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	for _, b := range [][]byte{{1}, forged.Serialize()} {
		// Linux may refuse it: unicast between processes needs a privilege.
		_ = unix.Sendto(s.GetFd(), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: uint32(pid)})
	}
	return nil
}

// Everything that may change a path does so without waiting for a poll.
func TestFollowing(t *testing.T) {
	s := watch(t)
	known := func(what string, cond func(underlay.Path) bool) {
		t.Helper()
		labtest.WaitFor(t, what, func() bool {
			p, _ := s.f.knows()
			return cond(p)
		})
	}
	known("the path", func(p underlay.Path) bool {
		return p.Reason == "" && p.MTU == 1500 && p.DeviceMTU == 1500 && !p.LocalMissing
	})
	ip(t, s.host, []string{"neigh replace 192.168.6.1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent"})
	known("the neighbour", func(p underlay.Path) bool {
		return p.HopReason == "" && p.Hop.Addr == [6]byte{2, 0, 0, 0, 0, 9} && p.Hop.Device == p.Device
	})
	ip(t, s.host, []string{"link set eth0 mtu 1400"})
	known("the device's mtu", func(p underlay.Path) bool { return p.MTU == 1400 && p.DeviceMTU == 1400 })
	ip(t, s.host, []string{"rule add pref 5 ipproto 4 prohibit"})
	known("the rule", func(p underlay.Path) bool { return p.Device == 0 && p.HopReason != "" })
	ip(t, s.host, []string{"rule del pref 5"})
	known("the rule's end", func(p underlay.Path) bool { return p.Device != 0 })
	ip(t, s.host, []string{"link set eth0 down"})
	known("no route", func(p underlay.Path) bool { return p.Reason != "" })
	ip(t, s.host, []string{"link set eth0 up", "route add 192.168.8.0/24 via 192.168.6.1"})
	known("the route", func(p underlay.Path) bool { return p.Reason == "" })
	ip(t, s.host, []string{"addr del 192.168.6.101/24 dev eth0"})
	known("the address's end", func(p underlay.Path) bool { return p.LocalMissing })
}
