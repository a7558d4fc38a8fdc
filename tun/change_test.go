package tun_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/tun"
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func route(to string, metric, table int) tun.Route {
	return tun.Route{To: netip.MustParsePrefix(to), Metric: metric, Table: table}
}

// routes returns the unicast routes through the link in the words of ip(8), including
// those that the kernel made for its addresses.
func routes(t *testing.T, h *host, d *tun.Device) (list []string) {
	t.Helper()
	filter := &netlink.Route{LinkIndex: d.Index(), Table: unix.RT_TABLE_UNSPEC}
	found, err := h.Netlink().RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range found {
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		s := r.Dst.String()
		for _, word := range []struct {
			name string
			set  bool
			v    any
		}{
			{"via", r.Gw != nil, r.Gw}, {"src", r.Src != nil, r.Src}, {"metric", r.Priority != 0, r.Priority},
			{"scope", r.Gw == nil && r.Scope != netlink.SCOPE_LINK, r.Scope},
			{"table", r.Table != unix.RT_TABLE_MAIN, r.Table}, {"proto", r.Protocol != unix.RTPROT_BOOT, r.Protocol},
		} {
			if word.set {
				s += fmt.Sprintf(" %s %v", word.name, word.v)
			}
		}
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

// ip runs ip(8)'s commands.
func ip(t *testing.T, h *host, commands ...string) {
	t.Helper()
	labtest.Need(t, "ip")
	for _, c := range commands {
		if out, err := h.Output("ip", strings.Fields(c)...); err != nil {
			t.Fatalf("ip %s: %v: %s", c, err, out)
		}
	}
}

// events is a socket that receives the changes in a namespace.
type events struct{ socket *nl.NetlinkSocket }

func listenEvents(t *testing.T, h *host) events {
	t.Helper()
	var s *nl.NetlinkSocket
	if err := h.Do(func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_TC)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return events{s}
}

// take returns the kinds of the events since the last call, in order. The kernel queues
// the events of a request before it answers.
func (e events) take(t *testing.T) (kinds []string) {
	t.Helper()
	names := map[uint16]string{
		unix.RTM_NEWLINK: "link", unix.RTM_NEWADDR: "+addr", unix.RTM_DELADDR: "-addr",
		unix.RTM_NEWROUTE: "+route", unix.RTM_DELROUTE: "-route",
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(e.socket.GetFd(), buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return kinds
		} else if err != nil {
			t.Fatal(err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			name, ok := names[m.Header.Type]
			if !ok {
				name = fmt.Sprint("type ", m.Header.Type)
			}
			kinds = append(kinds, name)
		}
	}
}

func change(t *testing.T, d *tun.Device, from, to tun.Link) {
	t.Helper()
	if err := d.Change(from, to); err != nil {
		t.Fatal(err)
	}
}

// full returns a Link that uses every field.
func full() tun.Link {
	return tun.Link{
		MTU:       1480,
		Remote:    netip.MustParseAddr("192.168.1.129"),
		Alias:     "to the office",
		Address:   netip.MustParsePrefix("172.66.1.101/32"),
		Peer:      netip.MustParseAddr("172.66.2.101"),
		Addresses: prefixes("10.1.2.3/24", "10.1.3.3/24"),
		Routes:    []tun.Route{route("10.9.0.0/16", 0, 0), route("10.8.0.0/16", 5, 0), route("0.0.0.0/0", 0, 1000)},
	}
}

// Where nothing differs, Change sends nothing.
func TestChange_Nothing(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	setup(t, d, full())
	e := listenEvents(t, h)
	change(t, d, full(), full())
	same := full()
	same.Routes[0].Table = unix.RT_TABLE_MAIN // the same as 0
	slices.Reverse(same.Addresses)
	slices.Reverse(same.Routes)
	change(t, d, full(), same)
	change(t, d, tun.Link{}, tun.Link{}) // also no MTU of 0
	if got := e.take(t); got != nil {
		t.Errorf("events: %q", got)
	}
}

// After each kind of change the link equals one that Setup made so, and nothing else was
// touched. After the change back it equals the old one.
func TestChange(t *testing.T) {
	tests := []struct {
		name   string
		edit   func(l *tun.Link)
		events []string // nil for any
		back   []string // events of the change back
	}{
		{"mtu", func(l *tun.Link) { l.MTU = 1400 }, []string{"link"}, []string{"link"}},
		{"remote", func(l *tun.Link) { l.Remote = netip.MustParseAddr("192.0.2.7") }, []string{"link"}, []string{"link"}},
		{"alias", func(l *tun.Link) { l.Alias = "other" }, []string{"link"}, []string{"link"}},
		{"no alias", func(l *tun.Link) { l.Alias = "" }, []string{"link"}, []string{"link"}},
		{"address", func(l *tun.Link) { l.Address = netip.MustParsePrefix("172.66.1.102/32") },
			[]string{"+addr", "-addr", "+addr"}, []string{"+addr", "-addr", "+addr"}}, // promoted
		{"peer", func(l *tun.Link) { l.Peer = netip.MustParseAddr("172.66.2.102") },
			[]string{"+addr", "-addr"}, []string{"+addr", "-addr"}},
		{"no peer", func(l *tun.Link) { l.Peer = netip.Addr{} }, nil, nil},
		{"no address", func(l *tun.Link) { l.Address, l.Peer = netip.Prefix{}, netip.Addr{} }, []string{"-addr"}, []string{"+addr"}},
		{"one more address", func(l *tun.Link) { l.Addresses = append(l.Addresses, netip.MustParsePrefix("10.1.4.4/24")) },
			[]string{"+addr"}, []string{"-addr"}},
		{"another address of a subnet", func(l *tun.Link) { l.Addresses[0] = netip.MustParsePrefix("10.1.2.4/24") }, nil, nil},
		{"address to addresses", func(l *tun.Link) {
			l.Addresses = append(prefixes("172.66.1.101/32"), l.Addresses...)
			l.Address, l.Peer = netip.Prefix{}, netip.Addr{}
		}, nil, nil},
		{"no addresses at all", func(l *tun.Link) { l.Address, l.Peer, l.Addresses = netip.Prefix{}, netip.Addr{}, nil }, nil, nil},
		{"one more route", func(l *tun.Link) { l.Routes = append(l.Routes, route("10.7.0.0/16", 0, 0)) }, []string{"+route"}, []string{"-route"}},
		{"metric", func(l *tun.Link) { l.Routes[0].Metric = 7 }, []string{"+route", "-route"}, []string{"+route", "-route"}},
		{"table", func(l *tun.Link) { l.Routes[2].Table = 1001 }, []string{"+route", "-route"}, []string{"+route", "-route"}},
		{"no routes", func(l *tun.Link) { l.Routes = nil }, []string{"-route", "-route", "-route"}, []string{"+route", "+route", "+route"}},
		{"a route that an address makes too", func(l *tun.Link) {
			l.Routes = append(l.Routes, route("10.1.2.0/24", 0, 0))
			l.Addresses = l.Addresses[1:]
		}, nil, nil},
		{"everything", func(l *tun.Link) {
			*l = tun.Link{
				MTU: 1300, Remote: netip.MustParseAddr("192.0.2.8"), Alias: "new", Address: netip.MustParsePrefix("10.20.0.1/16"),
				Addresses: prefixes("10.30.0.1/32"), Routes: []tun.Route{route("10.40.0.0/16", 1, 77)},
			}
		}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
			fresh := newHost(t)
			other := open(t, fresh, tun.Config{Name: "tun01", Queues: 1})
			from, to := full(), full()
			tt.edit(&to)
			setup(t, d, from)
			setup(t, other, to)
			before, want := describe(t, h, d), describe(t, fresh, other)
			index := d.Index()
			e := listenEvents(t, h)

			change(t, d, from, to)
			checkEvents(t, e, tt.events)
			if diff := cmp.Diff(want, describe(t, h, d)); diff != "" {
				t.Errorf("the link, unlike a new one (-want +got):\n%s", diff)
			}
			change(t, d, to, from)
			checkEvents(t, e, tt.back)
			if diff := cmp.Diff(before, describe(t, h, d)); diff != "" {
				t.Errorf("the link, changed back (-want +got):\n%s", diff)
			}
			l, err := h.Netlink().LinkByName("tun01")
			if err != nil {
				t.Fatal(err)
			}
			if l.Attrs().Index != index || l.Attrs().RawFlags&unix.IFF_UP == 0 {
				t.Errorf("index %d, flags %#x, want index %d and up", l.Attrs().Index, l.Attrs().RawFlags, index)
			}
		})
	}
}

// checkEvents compares the events with want, unless that is nil. Where addresses change,
// only events about them count: the kernel changes routes with them. It may send several
// events about one change of the link.
func checkEvents(t *testing.T, e events, want []string) {
	t.Helper()
	got := e.take(t)
	if want == nil {
		return
	}
	if slices.Contains(want, "+addr") || slices.Contains(want, "-addr") {
		got = slices.DeleteFunc(got, func(s string) bool { return !strings.HasSuffix(s, "addr") })
	}
	got = slices.CompactFunc(got, func(a, b string) bool { return a == "link" && b == "link" })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// description is the part of a link's state that Change covers.
type description struct {
	MTU, QLen         int
	Alias, Remote     string
	Addresses, Routes []string
}

func describe(t *testing.T, h *host, d *tun.Device) description {
	t.Helper()
	l, err := h.Netlink().LinkByIndex(d.Index())
	if err != nil {
		t.Fatal(err)
	}
	addrs := addresses(t, h, l.Attrs().Name, netlink.FAMILY_V4)
	slices.Sort(addrs)
	return description{
		l.Attrs().MTU, l.Attrs().TxQLen, l.Attrs().Alias,
		netipSlice(linkAttr(t, h, d, unix.IFLA_BROADCAST)).String(),
		addrs, routes(t, h, d),
	}
}

// Addresses and routes that other programs have added stay, whatever Change removes.
func TestChange_Foreign(t *testing.T) {
	const (
		addr      = "address add 10.1.2.99/24 dev tun01" // in a subnet of ours
		viaAddr   = "route add 10.50.0.0/16 dev tun01 src 10.1.2.99"
		onlink    = "route add 10.60.0.0/16 via 192.0.2.2 dev tun01 onlink proto bird metric 32 mtu 1300"
		table     = "route add 10.70.0.0/16 dev tun01 table 88"
		same      = "route add 10.9.0.0/16 dev tun01 metric 9" // beside ours of metric 0
		elsewhere = "route append 10.8.0.0/16 dev other0 metric 5"
	)
	setupForeign := func(t *testing.T, add ...string) (*host, *tun.Device) {
		h := newHost(t)
		d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
		setup(t, d, full())
		ip(t, h, "link add other0 type veth peer name other1", "address add 192.0.2.1/24 dev other0", "link set other0 up")
		ip(t, h, add...)
		return h, d
	}
	none := full()
	none.Address, none.Peer, none.Addresses, none.Routes = netip.Prefix{}, netip.Addr{}, nil, nil

	t.Run("address", func(t *testing.T) {
		h, d := setupForeign(t, addr, viaAddr, onlink, table, same, elsewhere)
		change(t, d, full(), none)
		checkList(t, "addresses", addresses(t, h, "tun01", netlink.FAMILY_V4), "10.1.2.99/24")
		checkList(t, "routes", routes(t, h, d),
			"10.1.2.0/24 src 10.1.2.99 proto kernel",
			"10.50.0.0/16 src 10.1.2.99",
			"10.60.0.0/16 via 192.0.2.2 metric 32 proto bird",
			"10.70.0.0/16 table 88",
			"10.9.0.0/16 metric 9")
		out, err := h.Output("ip", "route", "show", "dev", "other0")
		if err != nil || !strings.Contains(out, "10.8.0.0/16") {
			t.Errorf("the route that leads elsewhere: %q, %v", out, err)
		}
	})
	// With the last address of a link, the kernel removes all routes through it.
	t.Run("routes only", func(t *testing.T) {
		h, d := setupForeign(t, onlink, table, same, "route append 10.70.0.0/16 dev other0 table 88")
		to := none
		to.Routes = full().Routes[:1]
		change(t, d, full(), to)
		checkList(t, "addresses", addresses(t, h, "tun01", netlink.FAMILY_V4))
		checkList(t, "routes", routes(t, h, d),
			"10.60.0.0/16 via 192.0.2.2 metric 32 proto bird",
			"10.70.0.0/16 table 88",
			"10.9.0.0/16",
			"10.9.0.0/16 metric 9")
		out, err := h.Output("ip", "route", "show", "10.60.0.0/16")
		if err != nil || !strings.Contains(out, "mtu 1300") {
			t.Errorf("the route has lost its metrics: %q, %v", out, err)
		}
	})
	// A route with a removed address as its source cannot stay. If Link has a route to
	// that destination, Change adds it.
	t.Run("source", func(t *testing.T) {
		h, d := setupForeign(t, "route replace 10.9.0.0/16 dev tun01 src 10.1.2.3", "route add 10.51.0.0/16 dev tun01 src 10.1.2.3")
		to := full()
		to.Addresses = to.Addresses[1:]
		change(t, d, full(), to)
		got := routes(t, h, d)
		if !slices.Contains(got, "10.9.0.0/16") || strings.Contains(strings.Join(got, "\n"), "10.1.2.3") {
			t.Errorf("routes: %q", got)
		}
	})
}

func checkList(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// It is not an error if something exists or is gone already.
func TestChange_Meanwhile(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	from, to := full(), full()
	to.Address, to.Peer = netip.MustParsePrefix("10.20.0.1/16"), netip.Addr{}
	to.Addresses = to.Addresses[1:]
	to.Routes = []tun.Route{route("10.40.0.0/16", 0, 0), route("10.9.0.0/16", 0, 0)}
	setup(t, d, from)
	ip(t, h,
		"address add 10.20.0.1/16 dev tun01", "route add 10.40.0.0/16 dev tun01",
		"address del 10.1.2.3/24 dev tun01", "route del 10.8.0.0/16 dev tun01 metric 5", "route del 10.9.0.0/16 dev tun01")
	change(t, d, from, to)
	checkList(t, "addresses", addresses(t, h, "tun01", netlink.FAMILY_V4), "10.1.3.3/24", "10.20.0.1/16")
	// 10.9.0.0/16 is the same in both: it stays removed.
	checkList(t, "routes", routes(t, h, d), "10.1.3.0/24 src 10.1.3.3 proto kernel", "10.20.0.0/16 src 10.20.0.1 proto kernel", "10.40.0.0/16")
}

// After an error the other steps are still taken, and the message names what failed.
func TestChange_Errors(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	setup(t, d, full())
	ip(t, h, "link add other0 type veth peer name other1", "address add 192.0.2.1/24 dev other0", "link set other0 up",
		"route add 10.40.0.0/16 dev other0")
	to := full()
	to.MTU, to.Alias = 67, "new alias"
	to.Addresses = append(to.Addresses, netip.MustParsePrefix("10.1.4.4/24"))
	to.Routes = []tun.Route{route("10.40.0.0/16", 0, 0), route("10.41.0.0/16", 0, 0)}
	err := d.Change(full(), to)
	if !errors.Is(err, unix.EINVAL) || !errors.Is(err, unix.EEXIST) {
		t.Errorf("Change: %v, want the errors of the MTU and of the route that leads elsewhere", err)
	}
	for _, words := range []string{"change tun01: ", "mtu: ", "route to 10.40.0.0/16: "} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("the message %q does not say %q", err, words)
		}
	}
	got := describe(t, h, d)
	if got.MTU != 1480 || got.Alias != "new alias" || !slices.Contains(got.Addresses, "10.1.4.4/24") ||
		!slices.Contains(got.Routes, "10.41.0.0/16") || slices.Contains(got.Routes, "10.9.0.0/16") {
		t.Errorf("the link has become %+v", got)
	}
}

// If the link is gone, there is one error and not one for each step.
func TestChange_Deleted(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	setup(t, d, full())
	if err := h.DeleteLink("tun01"); err != nil {
		t.Fatal(err)
	}
	to := full()
	to.MTU, to.Alias, to.Addresses, to.Routes = 1400, "", nil, nil
	err := d.Change(full(), to)
	if !errors.Is(err, unix.ENODEV) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "change tun01: ") {
		t.Errorf("Change: %v, want one error %v", err, unix.ENODEV)
	}
}

// Below the minimum MTU of IPv6, the kernel forgets addrgenmode. Change sets it again.
func TestG6_MTUBelowIPv6(t *testing.T) {
	labtest.Need(t, "ip")
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	small := full()
	small.MTU = 1200
	setup(t, d, small)
	change(t, d, small, full())
	out, err := h.Output("ip", "-d", "link", "show", "tun01")
	if err != nil || !strings.Contains(out, "addrgenmode none") {
		t.Errorf("the mode of IPv6 addresses: %q, %v", out, err)
	}
}
