package underlay_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"goipip/internal/netlab/labtest"
	"goipip/internal/underlay"
)

// O11: without a local address, a path has the source that the route has, whatever changes
// that, and an address elsewhere costs nothing.
func TestO11_Source(t *testing.T) {
	s := watch(t)
	var f counter
	indexed := s.w.Indexed()
	following := s.w.Follow(underlay.Query{Remote: remote}, &f)
	known := func(what string, source netip.Addr) {
		t.Helper()
		labtest.WaitFor(t, what, func() bool {
			p := f.path.Load()
			return p.Source == source && (p.Reason == "") == source.IsValid() && !p.LocalMissing
		})
	}
	second := netip.MustParseAddr("192.168.6.102")
	known("the source", local)
	ip(t, s.host, []string{"addr add 192.168.6.102/24 dev eth0", "route change 192.168.8.0/24 via 192.168.6.1 src 192.168.6.102"})
	known("the preferred source", second)
	ip(t, s.host, []string{"route change 192.168.8.0/24 via 192.168.6.1"})
	known("the first address", local)
	if err := s.host.Sysctl("net.ipv4.conf.eth0.promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	ip(t, s.host, []string{"addr del 192.168.6.101/24 dev eth0"})
	known("the second address, without an event of a route", second)

	// Neither address of the device, which has none then.
	ip(t, s.host, []string{"addr add 10.5.0.1/32 dev lo", "addr del 192.168.6.102/24 dev eth0", "route add 192.168.8.0/24 via 192.168.6.1 dev eth0 onlink"})
	known("an address of another link", netip.MustParseAddr("10.5.0.1"))
	ip(t, s.host, []string{"addr add 10.5.0.2/32 dev lo", "addr del 10.5.0.1/32 dev lo"})
	known("its other address", netip.MustParseAddr("10.5.0.2"))
	ip(t, s.host, []string{"addr del 10.5.0.2/32 dev lo"})
	known("no address", netip.Addr{})
	ip(t, s.host, []string{"addr add 192.168.6.101/24 dev eth0"})
	known("an address again", local)

	ip(t, s.host, []string{"link add d0 type veth peer name e0"})
	var lines []string
	for i := range 200 {
		lines = append(lines, fmt.Sprintf("addr add 10.6.0.%d/32 dev d0", i+1))
	}
	before := f.settled.Load()
	ip(t, s.host, lines)
	labtest.WaitFor(t, "the addresses to be known", func() bool { return len(s.w.Own()) == 202 })
	if n := f.settled.Load() - before; n > 10 {
		t.Errorf("%d lookups for addresses of another link", n)
	}

	ip(t, s.host, []string{"route del 192.168.8.0/24"})
	known("no route", netip.Addr{})
	following.Close()
	ip(t, s.host, []string{"route add 192.168.8.0/24 via 192.168.6.1"})
	s.waitMTU(t, 1500)
	labtest.WaitFor(t, "the index to be as before", func() bool { return s.w.Indexed() == indexed })
}

// A path tells the type of its route.
func TestRouteType(t *testing.T) {
	s := watch(t)
	for to, want := range map[string]int{
		"192.168.8.101": syscall.RTN_UNICAST,
		"192.168.6.101": syscall.RTN_LOCAL,
		"127.0.0.1":     syscall.RTN_LOCAL,
		"192.168.6.255": syscall.RTN_BROADCAST,
		"192.0.2.1":     0,
	} {
		var f counter
		s.w.Follow(underlay.Query{Remote: netip.MustParseAddr(to)}, &f).Close()
		if p := f.path.Load(); p.RouteType != want {
			t.Errorf("to %s: type %d, want %d; %+v", to, p.RouteType, want, p)
		}
	}
}
