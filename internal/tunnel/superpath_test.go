package tunnel_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// segmented has the prober leave the cutting of what it writes to the tunnel, into
// packets of size bytes.
func (p *prober) segmented(t testing.TB, size int) {
	t.Helper()
	p.control(t, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size-28)
	})
}

// burst writes n bytes at once, and fails the test unless they arrive in datagrams
// of packets of size bytes.
func (p *prober) burst(t testing.TB, n, size int) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(n), uint64(size)))
	want := make([]byte, n)
	for i := range want {
		want[i] = byte(random.Uint32())
	}
	if _, err := p.out.Write(want); err != nil {
		t.Fatal(err)
	}
	must(t, p.in.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 1<<16)
	for at := 0; at < n; {
		got, err := p.in.Read(buf)
		if err != nil {
			t.Errorf("of %d bytes in packets of %d, %d arrive: %v", n, size, at, err)
			return
		}
		next := want[at:min(at+size-28, n)]
		if !bytes.Equal(buf[:got], next) {
			t.Fatalf("of %d bytes in packets of %d, a datagram of %d arrives behind %d, or with others: want %d", n, size, got, at, len(next))
		}
		at += got
	}
}

// A superpacket may be as long as an IP packet can be: what fits the path are its
// segments (T1).
func TestT1_LongestSuperpacket(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	p := newProber(t, n.a, n.b)
	p.segmented(t, 1480)
	tun01 := capture(t, n.a.host, "tun01")
	for _, size := range []int{20_000, 65487, 65488, 65507} {
		before := n.a.tunnel.Stats().TX
		p.burst(t, size, 1480)
		n.a.balance(t)
		if after := n.a.tunnel.Stats().TX; after.Packets != before.Packets+1 || total(after) != total(before)+1 {
			t.Errorf("%d bytes: counted %+v, before %+v", size, after, before)
		}
	}
	n.settle(t, tun01)
	longest := 0
	for _, p := range tun01.Packets() {
		longest = max(longest, len(p.Data))
	}
	if longest <= 1480 {
		t.Skipf("this kernel cuts by itself: no packet is longer than %d bytes", longest)
	}
	n.balance(t)
	n.a.drops(t)
}

// The sender of a superpacket with DF hears that its segments are too long.
func TestT7_Superpacket(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.shorten(t)
	tun01 := capture(t, n.a.host, "tun01")
	p := newProber(t, n.a, n.b)
	p.segmented(t, 1480)
	if _, err := p.out.Write(make([]byte, 20_000)); err != nil {
		t.Fatal(err)
	}
	e := waitICMPError(t, tun01, func(e icmpError) bool { return e.typ == 3 })
	if e.code != 4 || e.mtu != 1380 {
		t.Errorf("the sender hears %v with mtu %d, want 3/4 with 1380", e, e.mtu)
	}
	e.check(t, outgoing(t, tun01, e))
	labtest.WaitFor(t, "its kernel to know the path's MTU", func() bool { return p.mtu(t) == 1380 })
	p = newProber(t, n.a, n.b)
	p.segmented(t, 1380)
	p.burst(t, 20_000, 1380)
	n.settle(t, tun01)
	for _, e := range icmpErrors(tun01)[1:] {
		t.Errorf("the sender hears %v too", e)
	}
	n.balance(t)
	n.a.drops(t, stats.TooBig)
}

// Without DF, each segment is cut.
func TestT12_Superpacket(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*tunnel.Config)
		mtu    int // of the link
	}{
		"inner": {func(c *tunnel.Config) {}, 1480},
		"outer": {func(c *tunnel.Config) { c.NoPMTUDisc, c.MTU = true, 4000 }, 4000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := across(t)
			n.start(t, c.change)
			n.shorten(t)
			wire := capture(t, n.r1, "a0")
			p := newProber(t, n.a, n.b)
			p.fragments(t)
			p.segmented(t, c.mtu)
			before := n.a.tunnel.Stats().TX
			for _, size := range []int{5000, 20_000, 60_000} {
				p.burst(t, size, c.mtu)
			}
			n.settle(t, wire)
			n.balance(t)
			for _, outer := range n.a.outerPackets(wire) {
				if len(outer) > 1400 || outer.DF() != (name == "inner") {
					t.Errorf("on the wire are %d bytes with DF %v", len(outer), outer.DF())
				}
			}
			after := n.a.tunnel.Stats().TX
			t.Logf("3 writes are %d packets in the link", total(after)-total(before)-1)
			n.b.drops(t)

			// TCP without DF is the same (ip_no_pmtu_disc).
			for _, end := range n.directions() {
				must(t, end[0].host.Sysctl("net.ipv4.ip_no_pmtu_disc", "1"))
			}
			r, err := netlab.Transfer(labtest.Context(t), n.a.host, n.b.host, netip.AddrPortFrom(n.b.inner, 0), 4<<20)
			if err != nil {
				t.Error(err)
			}
			t.Logf("4 MiB of TCP in %v", r.Duration)
			n.balance(t)
			n.a.drops(t, stats.TooBig) // what shorten sent
		})
	}
}
