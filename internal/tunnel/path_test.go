package tunnel_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// prober sends datagrams with DF, and knows what its kernel knows of the path.
type prober struct {
	out, in *net.UDPConn
}

func newProber(t testing.TB, from, to *site) *prober {
	t.Helper()
	f := newFlow(t, from, to)
	p := &prober{out: f.out, in: f.in}
	t.Cleanup(func() {
		p.out.Close()
		p.in.Close()
	})
	p.control(t, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	return p
}

func (p *prober) control(t testing.TB, f func(fd int) error) {
	t.Helper()
	raw, err := p.out.SyscallConn()
	must(t, err)
	var opErr error
	must(t, raw.Control(func(fd uintptr) { opErr = f(int(fd)) }))
	must(t, opErr)
}

// mtu is that of the path, as far as known.
func (p *prober) mtu(t testing.TB) (mtu int) {
	t.Helper()
	p.control(t, func(fd int) (err error) {
		mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
		return err
	})
	return mtu
}

// send sends a packet of n bytes.
func (p *prober) send(n int) error {
	_, err := p.out.Write(make([]byte, n-28))
	return err
}

// fragments has the prober send without DF from now on.
func (p *prober) fragments(t testing.TB) {
	t.Helper()
	p.control(t, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	})
}

// exchange fails the test unless packets of n bytes arrive as they were sent.
func (p *prober) exchange(t testing.TB, n int) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(n), 7))
	buf := make([]byte, 1<<16)
	must(t, p.in.SetReadDeadline(time.Now().Add(10*time.Second)))
	for range 5 {
		want := make([]byte, n-28)
		for i := range want {
			want[i] = byte(random.Uint32())
		}
		if _, err := p.out.Write(want); err != nil {
			t.Fatal(err)
		}
		got, err := p.in.Read(buf)
		if err != nil || !bytes.Equal(buf[:got], want) {
			t.Fatalf("of a packet of %d bytes %d bytes of payload arrive, not what was sent: %v", n, got, err)
		}
	}
}

// learns sends packets of n bytes until the kernel knows that the path's MTU is
// want. It returns how many it took.
func (p *prober) learns(t testing.TB, n, want int) (sent int) {
	t.Helper()
	labtest.WaitFor(t, "the path's MTU to be known", func() bool {
		switch err := p.send(n); {
		case err == nil:
			sent++
		case !errors.Is(err, unix.EMSGSIZE):
			t.Fatal(err)
		}
		return p.mtu(t) == want
	})
	return sent
}

// arrives fails the test unless the longest packet that fits arrives, while one
// more byte is refused.
func (p *prober) arrives(t testing.TB, longest int) {
	t.Helper()
	if err := p.send(longest + 1); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("send %d bytes: %v, want %v", longest+1, err, unix.EMSGSIZE)
	}
	must(t, p.in.SetReadDeadline(time.Now().Add(10*time.Second)))
	labtest.WaitFor(t, "a packet that fits to be sent", func() bool {
		// Once for each ICMP error, the socket returns it.
		return p.send(longest) == nil
	})
	buf := make([]byte, 1<<16)
	for {
		n, err := p.in.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a packet of %d bytes does not arrive", longest)
		} else {
			must(t, err)
		}
		if err != nil || n == longest-28 {
			return
		}
	}
}

// A sender on the tunnel's host hears of a shorter path from the tunnel, whose
// link keeps its MTU.
func TestT7_LocalSender(t *testing.T) {
	t.Parallel()
	for _, queues := range []int{1, 3} {
		n := across(t)
		n.strict(t)
		n.start(t, func(c *tunnel.Config) { c.Queues = queues })
		before := 1480
		for _, mtu := range []int{1400, 600} {
			n.shrink(t, mtu)
			for _, end := range n.directions() {
				from, to := end[0], end[1]
				c := capture(t, from.host, "tun01")
				p := newProber(t, from, to)
				if got := p.mtu(t); got != before {
					t.Errorf("before the first packet IP_MTU is %d, want %d", got, before)
				}
				sent := p.learns(t, before, mtu-20)
				t.Logf("queues %d, path %d: known after %d packets", queues, mtu, sent)
				p.arrives(t, mtu-20)

				e := waitICMPError(t, c, func(e icmpError) bool { return e.typ == 3 })
				if e.code != 4 || e.mtu != mtu-20 {
					t.Errorf("path of %d: %v with mtu %d", mtu, e, e.mtu)
				}
				e.check(t, outgoing(t, c, e))
				c.Close()
				if got := from.tunnel.MTU(); got != 1480 {
					t.Errorf("path of %d: the MTU of the link is %d, want 1480", mtu, got)
				}
			}
			before = mtu - 20
		}
		n.balance(t)
		n.a.drops(t, stats.TooBig)
		n.b.drops(t, stats.TooBig)
	}
}

// strict has both ends drop what does not come from where they would send to it
// (RFC 3704), as many distributions do: also ICMP errors from a wrong source.
func (n *network) strict(t testing.TB) {
	t.Helper()
	for _, s := range []*site{n.a, n.b} {
		must(t, s.host.Sysctl("net.ipv4.conf.all.rp_filter", "1"))
	}
}

// So does one on a host behind.
func TestT7_ForwardedSender(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.strict(t)
	n.start(t, nil)
	client := n.client(t)
	ping(t, client, n.b, netlab.PingOptions{})
	before := 1480
	for _, mtu := range []int{1400, 600} {
		n.shrink(t, mtu)
		tun01, eth0 := capture(t, n.a.host, "tun01"), capture(t, client.host, "eth0")
		p := newProber(t, client, n.b)
		p.learns(t, before, mtu-20)
		e := waitICMPError(t, eth0, func(e icmpError) bool { return e.typ == 3 })
		if e.code != 4 || e.mtu != mtu-20 {
			t.Errorf("path of %d: %v with mtu %d", mtu, e, e.mtu)
		}
		e.check(t, outgoing(t, tun01, e)) // with the TTL that it had there
		p.arrives(t, mtu-20)
		tun01.Close()
		eth0.Close()
		before = mtu - 20
	}
	n.balance(t)
	n.a.drops(t, stats.TooBig)
}

// What is known of the path is forgotten after a time, by the kernel and then by the
// tunnel.
func TestT7_Expires(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.expires(t)
}

// expires fails the test unless what a router said of the path is forgotten when the
// kernel is to forget it.
func (n *network) expires(t testing.TB) {
	t.Helper()
	must(t, n.a.host.Sysctl("net.ipv4.route.mtu_expires", "1"))
	n.shrink(t, 1400)
	p := newProber(t, n.a, n.b)
	p.learns(t, 1480, 1380)
	n.shrink(t, 1500)
	n.grows(t, p)
	n.balance(t)
}

// grows returns when packets of p as long as the links permit arrive.
func (n *network) grows(t testing.TB, p *prober) {
	t.Helper()
	buf := make([]byte, 1<<16)
	labtest.WaitFor(t, "a packet of 1480 bytes to arrive", func() bool {
		if p.send(1480) != nil {
			return false // known to the kernel
		}
		must(t, p.in.SetReadDeadline(time.Now().Add(unanswered))) // known to the tunnel
		got, err := p.in.Read(buf)
		return err == nil && got == 1480-28
	})
}

// A path that the kernel takes for longer again is so at once: a sender who is told
// of the past believes it for ten minutes (net.ipv4.route.mtu_expires).
func TestT6_LongerAtOnce(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.shrink(t, 1400)
	p := newProber(t, n.a, n.b)
	p.learns(t, 1480, 1380)
	n.shrink(t, 1500)
	must(t, n.a.host.Sysctl("net.ipv4.route.flush", "1"))
	p = newProber(t, n.a, n.b)
	if got := p.mtu(t); got != 1480 {
		t.Fatalf("IP_MTU is %d, want 1480", got)
	}
	time.Sleep(2 * time.Millisecond) // a look at the path is good for one
	must(t, p.send(1480))
	must(t, p.in.SetReadDeadline(time.Now().Add(time.Second)))
	if got, err := p.in.Read(make([]byte, 1<<16)); err != nil || got != 1480-28 {
		t.Errorf("of a packet of 1480 bytes arrive %d bytes: %v", got, err)
	}
	if got := p.mtu(t); got != 1480 {
		t.Errorf("IP_MTU is %d, want 1480", got)
	}
}

// T6: the path is as long as its route says, from the next second on.
func TestT6_RouteWithMTU(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	p := newProber(t, n.a, n.b)
	n.routeMTU(t, 1300, false)
	p.learns(t, 1480, 1280)
	p.arrives(t, 1280)
	n.balance(t)
}

// routeMTU sets the MTU of a's route to b, locked or not.
func (n *network) routeMTU(t testing.TB, mtu int, locked bool) {
	t.Helper()
	_, dst, err := net.ParseCIDR("192.168.8.0/24")
	must(t, err)
	route := &netlink.Route{Dst: dst, Gw: net.ParseIP("192.168.6.1"), MTU: mtu, MTULock: locked}
	must(t, n.a.host.Netlink().RouteReplace(route))
}

// Below net.ipv4.route.min_pmtu Linux believes no router, and lets the routers
// fragment instead (ip_mtu_locked).
func TestT7_BelowTheMinimum(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.shrink(t, 500)
	wire := capture(t, n.r1, "a0")
	for _, end := range n.directions() {
		r, err := netlab.Transfer(labtest.Context(t), end[0].host, end[1].host, netip.AddrPortFrom(end[1].inner, 0), 1<<20)
		if err != nil {
			t.Error(err)
		}
		t.Logf("1 MiB from %s in %v", end[0].host.Name, r.Duration)
	}
	ping(t, n.a, n.b, netlab.PingOptions{Count: 10, Size: 4000})
	n.settle(t, wire)
	permitted := 0
	for _, p := range wire.Packets() {
		if p.Outgoing || p.Data[9] != unix.IPPROTO_IPIP {
			continue
		}
		df := p.Data[6]&0x40 != 0
		switch {
		case !df:
			permitted++
		case permitted > 0:
			t.Errorf("a packet of %d bytes with DF after one without: %v", len(p.Data), p)
		}
		if !df && len(p.Data) > 552 {
			t.Errorf("a packet of %d bytes without DF: %v", len(p.Data), p)
		}
	}
	if permitted == 0 {
		t.Error("all packets have DF")
	}
	n.balance(t)
}

// A locked route permits fragments too.
func TestT7_LockedRoute(t *testing.T) {
	t.Parallel()
	n := across(t)
	n.start(t, nil)
	n.routeMTU(t, 1000, true)
	wire := capture(t, n.r1, "a0")
	labtest.WaitFor(t, "a packet without DF", func() bool {
		ping(t, n.a, n.b, netlab.PingOptions{DF: true, Size: 100})
		for _, p := range wire.Packets() {
			if !p.Outgoing && p.Data[9] == unix.IPPROTO_IPIP && p.Data[6]&0x40 == 0 {
				return true
			}
		}
		return false
	})
	p := newProber(t, n.a, n.b)
	p.learns(t, 1480, 980)
	p.arrives(t, 980)
	ping(t, n.a, n.b, netlab.PingOptions{Count: 10, Size: 4000})
	n.balance(t)
}
