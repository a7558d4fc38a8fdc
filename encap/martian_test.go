package encap_test

import (
	"net/netip"
	"sync"
	"testing"

	"goipip/encap"
	"goipip/internal/stats"
)

func TestG1_WrongPeer(t *testing.T) {
	tests := []struct {
		name     string
		src, dst string
		want     stats.Reason
	}{
		{"our peer", local.String(), remote.String(), stats.Deliver},
		{"another source", "10.90.6.239", remote.String(), stats.WrongPeer},
		{"another destination", local.String(), "192.168.1.128", stats.WrongPeer},
		{"both other", "203.0.113.1", "203.0.113.2", stats.WrongPeer},
		{"our own packet come back", remote.String(), local.String(), stats.WrongPeer},
		{"multicast destination", local.String(), "224.0.0.1", stats.WrongPeer},
		{"broadcast destination", local.String(), "255.255.255.255", stats.WrongPeer},
		{"no source", "0.0.0.0", remote.String(), stats.WrongPeer},
		{"differs in the first byte only", "11.90.6.238", remote.String(), stats.WrongPeer},
	}
	d := newDecapsulator(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outer := wrap(ipv4{}.bytes())
			outer.SetSource(addr(tt.src, ""))
			outer.SetDestination(addr(tt.dst, ""))
			outer.UpdateChecksum()
			if tt.want == stats.Deliver {
				mustDecap(t, d, outer)
				return
			}
			checkDrop(t, d, outer, tt.want)
		})
	}
}

// O11: with any local address, the destination may be each that the kernel hands over, as with
// ip_tunnel_lookup, but the source may not.
func TestG1_O11_AnyLocal(t *testing.T) {
	d, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, AnyLocal: true, Remote: local}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{remote.String(), "10.0.0.1", "223.255.255.255", "224.0.0.1", "255.255.255.255"} {
		for _, src := range []string{local.String(), "203.0.113.1"} {
			outer := wrap(ipv4{}.bytes())
			outer.SetSource(addr(src, ""))
			outer.SetDestination(addr(dst, ""))
			outer.UpdateChecksum()
			if src == local.String() {
				mustDecap(t, d, outer)
			} else {
				checkDrop(t, d, outer, stats.WrongPeer)
			}
		}
	}
}

// O11: an Outer needs a source only where it has one.
func TestO11_Outer(t *testing.T) {
	for _, tt := range []struct {
		local    netip.Addr
		anyLocal bool
		ok       bool
	}{
		{local, true, true},
		{netip.Addr{}, true, true},
		{netip.Addr{}, false, false},
		{netip.MustParseAddr("2001:db8::1"), true, false},
	} {
		o := encap.Outer{Format: encap.IPIP, Local: tt.local, AnyLocal: tt.anyLocal, Remote: remote}
		_, errEncap := encap.NewEncapsulator(o, encap.NewIDs(), nil)
		_, errDecap := encap.NewDecapsulator(o, nil)
		if (errEncap == nil) != tt.ok || (errDecap == nil) != tt.ok {
			t.Errorf("%+v: %v, %v", tt, errEncap, errDecap)
		}
	}
}

// CVE-2020-10136: a remote address of 0.0.0.0 must not match every source.
func TestG1_WildcardRemoteNeedsAnOption(t *testing.T) {
	d, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, Local: remote, Remote: netip.IPv4Unspecified()}, nil)
	if err != nil {
		return // refused: as good
	}
	checkDrop(t, d, wrap(ipv4{}.bytes()), stats.WrongPeer)
}

func TestG2_MartianSource(t *testing.T) {
	tests := []struct {
		src  string
		want stats.Reason
	}{
		{"0.0.0.0", stats.Martian},
		{"0.0.0.1", stats.Martian},
		{"0.255.255.255", stats.Martian},
		{"1.0.0.0", stats.Deliver},
		{"10.0.0.1", stats.Deliver},
		{"126.255.255.255", stats.Deliver},
		{"127.0.0.0", stats.Martian},
		{"127.0.0.1", stats.Martian},
		{"127.255.255.255", stats.Martian},
		{"128.0.0.0", stats.Deliver},
		{"169.254.1.1", stats.Deliver},
		{"192.168.0.255", stats.Deliver},
		{"223.255.255.255", stats.Deliver},
		{"224.0.0.0", stats.Martian},
		{"224.0.0.5", stats.Martian},
		{"239.255.255.255", stats.Martian},
		{"240.0.0.0", stats.Martian},
		{"250.1.2.3", stats.Martian},
		{"255.255.255.254", stats.Martian},
		{"255.255.255.255", stats.Martian},
	}
	d := newDecapsulator(t)
	for _, tt := range tests {
		t.Run(tt.src, func(t *testing.T) {
			outer := wrap(ipv4{src: tt.src}.bytes())
			if tt.want == stats.Deliver {
				mustDecap(t, d, outer)
				return
			}
			checkDrop(t, d, outer, tt.want)
		})
	}
}

func TestG2_MartianDestination(t *testing.T) {
	tests := []struct {
		dst  string
		want stats.Reason
	}{
		{"0.0.0.0", stats.Martian},
		{"0.255.255.255", stats.Martian},
		{"1.0.0.0", stats.Deliver},
		{"126.255.255.255", stats.Deliver},
		{"127.0.0.0", stats.Martian},
		{"127.0.0.1", stats.Martian},
		{"127.255.255.255", stats.Martian},
		{"128.0.0.0", stats.Deliver},
		{"223.255.255.255", stats.Deliver},
		{"224.0.0.0", stats.Deliver},
		{"224.0.0.5", stats.Deliver}, // OSPF
		{"239.255.255.255", stats.Deliver},
		{"255.255.255.255", stats.Deliver}, // G2 names no such destination
	}
	d := newDecapsulator(t)
	for _, tt := range tests {
		t.Run(tt.dst, func(t *testing.T) {
			outer := wrap(ipv4{dst: tt.dst}.bytes())
			if tt.want == stats.Deliver {
				mustDecap(t, d, outer)
				return
			}
			checkDrop(t, d, outer, tt.want)
		})
	}
}

func TestG2_OwnAddress(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1"), remote}
	from := func(src string) []byte { return wrap(ipv4{src: src}.bytes()) }
	var host encap.Host
	d := newDecapsulatorOf(t, &host)

	mustDecap(t, d, from("10.1.0.1")) // the host has no addresses yet

	host.Set(own)
	for _, a := range own {
		checkDrop(t, d, from(a.String()), stats.Martian)
	}
	mustDecap(t, d, from("10.1.0.2"))
	mustDecap(t, d, from("10.2.0.0"))
	mustDecap(t, d, wrap(ipv4{src: "10.0.0.1", dst: "10.1.0.1"}.bytes())) // as destination, it is fine

	// Set copies the addresses.
	own[0] = netip.MustParseAddr("10.9.0.1")
	checkDrop(t, d, from("10.1.0.1"), stats.Martian)
	mustDecap(t, d, from("10.9.0.1"))

	host.Set([]netip.Addr{netip.MustParseAddr("10.3.0.1")}) // replaces, does not add
	mustDecap(t, d, from("10.1.0.1"))
	checkDrop(t, d, from("10.3.0.1"), stats.Martian)

	host.Set(nil)
	mustDecap(t, d, from("10.3.0.1"))
	checkDrop(t, d, from("127.0.0.1"), stats.Martian)
}

// IPv6 addresses of the host are ignored, as is the zero Addr.
func TestG2_OwnAddressOfAnotherFamily(t *testing.T) {
	var host encap.Host
	d := newDecapsulatorOf(t, &host)
	host.Set([]netip.Addr{
		netip.MustParseAddr("::1"), netip.MustParseAddr("fe80::1%lo"), {}, netip.MustParseAddr("10.1.0.1"),
	})
	mustDecap(t, d, wrap(ipv4{}.bytes()))
	checkDrop(t, d, wrap(ipv4{src: "10.1.0.1"}.bytes()), stats.Martian)
}

// The host's addresses change while packets are received and sent: each packet sees
// one set, whole. All tunnels share the Host.
func TestG2_HostSetWhileReceiving(t *testing.T) {
	both := []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1")}
	var host encap.Host
	host.Set(both)
	var wg sync.WaitGroup
	for range 2 {
		d := newDecapsulatorOf(t, &host)
		wg.Go(func() {
			always, never := wrap(ipv4{src: "10.1.0.1"}.bytes()), wrap(ipv4{src: "10.4.0.1"}.bytes())
			for range 5000 {
				if _, v := d.Decap(always); v != stats.Martian {
					t.Errorf("own address: %v", v)
				}
				if _, v := d.Decap(never); v != stats.Deliver {
					t.Errorf("another host's address: %v", v)
				}
			}
		})
	}
	e := newEncapsulatorOf(t, encap.Outer{}, encap.NewIDs(), &host)
	wg.Go(func() {
		always, never := nest(4, "10.1.0.1"), nest(4, "10.4.0.1")
		for range 5000 {
			if v := e.Check(always); v != stats.TooDeep {
				t.Errorf("four tunnels of this host: %v", v)
			}
			if v := e.Check(never); v != stats.Deliver {
				t.Errorf("four tunnels of another host: %v", v)
			}
		}
	})
	wg.Go(func() {
		for i := range 5000 {
			host.Set(both[:1+i%2])
		}
	})
	wg.Wait()
	host.Set(nil)
	if v := e.Check(nest(4, "10.1.0.1")); v != stats.Deliver {
		t.Errorf("after the host lost its addresses: %v", v)
	}
}
