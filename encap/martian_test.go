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

// CVE-2020-10136: 0.0.0.0 must not come to mean "anybody" unasked.
func TestG1_WildcardRemoteNeedsAnOption(t *testing.T) {
	d, err := encap.NewDecapsulator(remote, netip.IPv4Unspecified())
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
	d := newDecapsulator(t)

	mustDecap(t, d, from("10.1.0.1")) // nothing is our own yet

	d.SetOwn(own)
	for _, a := range own {
		checkDrop(t, d, from(a.String()), stats.Martian)
	}
	mustDecap(t, d, from("10.1.0.2"))
	mustDecap(t, d, from("10.2.0.0"))
	mustDecap(t, d, wrap(ipv4{src: "10.0.0.1", dst: "10.1.0.1"}.bytes())) // to us is what a tunnel is for

	// The set is what it was when it was told.
	own[0] = netip.MustParseAddr("10.9.0.1")
	checkDrop(t, d, from("10.1.0.1"), stats.Martian)
	mustDecap(t, d, from("10.9.0.1"))

	d.SetOwn([]netip.Addr{netip.MustParseAddr("10.3.0.1")}) // replaces, does not add
	mustDecap(t, d, from("10.1.0.1"))
	checkDrop(t, d, from("10.3.0.1"), stats.Martian)

	d.SetOwn(nil)
	mustDecap(t, d, from("10.3.0.1"))
	checkDrop(t, d, from("127.0.0.1"), stats.Martian)
}

// The addresses of a host, as net/netip reads them from anywhere, include IPv6
// ones; those can be the source of no inner packet, and must do no harm.
func TestG2_OwnAddressOfAnotherFamily(t *testing.T) {
	d := newDecapsulator(t)
	d.SetOwn([]netip.Addr{
		netip.MustParseAddr("::1"), netip.MustParseAddr("fe80::1%lo"), {}, netip.MustParseAddr("10.1.0.1"),
	})
	mustDecap(t, d, wrap(ipv4{}.bytes()))
	checkDrop(t, d, wrap(ipv4{src: "10.1.0.1"}.bytes()), stats.Martian)
}

// An address comes or goes while packets arrive: each sees one set, whole.
func TestG2_SetOwnWhileReceiving(t *testing.T) {
	both := []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1")}
	d := newDecapsulator(t)
	d.SetOwn(both)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			always, never := wrap(ipv4{src: "10.1.0.1"}.bytes()), wrap(ipv4{src: "10.4.0.1"}.bytes())
			for range 5000 {
				if _, v := d.Decap(always); v != stats.Martian {
					t.Errorf("own address: %v", v)
				}
				if _, v := d.Decap(never); v != stats.Deliver {
					t.Errorf("address of somebody else: %v", v)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 5000 {
			d.SetOwn(both[:1+i%2])
		}
	})
	wg.Wait()
}
