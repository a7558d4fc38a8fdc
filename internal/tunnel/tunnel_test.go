package tunnel_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// site is one end of the tunnel under test.
type site struct {
	host         *netlab.Host
	outer, inner netip.Addr
	log          *slog.Logger
	tunnel       *tunnel.Tunnel
	cancel       context.CancelFunc
	ended        chan error
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newSite(host *netlab.Host, outer, inner string) *site {
	return &site{host: host, outer: netip.MustParseAddr(outer), inner: netip.MustParseAddr(inner), log: quiet()}
}

// hosts returns two hosts on one cable, without a tunnel.
func hosts(t testing.TB) (a, b *site) {
	labtest.Need(t, "tun")
	lab := labtest.New(t)
	var sites [2]*site
	for i, s := range []struct{ name, outer, inner string }{
		{"a", "192.168.6.1", "172.56.1.101"},
		{"b", "192.168.6.2", "172.56.2.101"},
	} {
		host, err := lab.Host(s.name)
		if err != nil {
			t.Fatal(err)
		}
		sites[i] = newSite(host, s.outer, s.inner)
	}
	a, b = sites[0], sites[1]
	if err := errors.Join(
		lab.Veth(a.host, "eth0", b.host, "eth0"),
		a.host.AddAddr("eth0", "192.168.6.1/24"),
		b.host.AddAddr("eth0", "192.168.6.2/24"),
	); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func config(near, far *site) tunnel.Config {
	local := near.outer
	if *anyLocal {
		local = netip.Addr{}
	}
	cfg := tunnel.Config{
		Name:    "tun01",
		Local:   local,
		Remote:  far.outer,
		Address: netip.PrefixFrom(near.inner, 32),
		Peer:    far.inner,
		Queues:  1,
	}
	if *fast {
		cfg.Fast = tunnel.FastAuto
	}
	return cfg
}

// start opens and runs cfg on s until the test ends or stop. A tunnel that runs to
// the end of the test must have counted each packet (G5).
func (s *site) start(t testing.TB, cfg tunnel.Config) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	var leave func()
	if err := s.host.Do(func() (err error) {
		s.tunnel, leave, err = s.openTunnel(cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.ended = make(chan error, 1)
	tunnel, ended := s.tunnel, s.ended
	var over atomic.Bool
	go func() {
		defer over.Store(true)
		err := tunnel.Run(ctx)
		leave()
		ended <- err
	}()
	t.Cleanup(func() {
		defer s.cancel()
		if ctx.Err() == nil && !over.Load() && !t.Failed() {
			balance(t, s.host, tunnel)
		}
	})
}

// end waits for the end of Run and returns its error.
func (s *site) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not return")
		return nil
	}
}

// tunnels returns two hosts with a running tunnel between them.
func tunnels(t testing.TB, change func(*tunnel.Config)) (a, b *site) {
	t.Helper()
	a, b = hosts(t)
	for _, end := range [][2]*site{{a, b}, {b, a}} {
		cfg := config(end[0], end[1])
		if change != nil {
			change(&cfg)
		}
		end[0].start(t, cfg)
	}
	return a, b
}

func ping(t testing.TB, from, to *site, o netlab.PingOptions) netlab.PingResult {
	t.Helper()
	result, err := from.host.Ping(labtest.Context(t), to.inner, o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestTunnelCarriesAndCounts(t *testing.T) {
	for _, queues := range []int{1, 3} {
		a, b := tunnels(t, func(c *tunnel.Config) { c.Queues = queues })
		const n = 20
		o := netlab.PingOptions{Count: n, Interval: time.Millisecond, Size: 100}
		if r := ping(t, a, b, o); r.Received != n {
			t.Fatalf("queues %d: %d of %d pings answered", queues, r.Received, n)
		}
		want := stats.Direction{Packets: n, Bytes: n * (20 + 8 + 100)}
		for _, s := range []*site{a, b} {
			labtest.WaitFor(t, "all packets to be counted", func() bool {
				now := s.tunnel.Stats()
				return now.TX.Packets == want.Packets && now.RX.Packets == want.Packets
			})
			now := s.tunnel.Stats()
			for _, d := range []stats.Direction{now.TX, now.RX} {
				if d.Bytes != want.Bytes || d.Drops != want.Drops {
					t.Errorf("queues %d, host %s: counted %+v, want %+v", queues, s.host.Name, d, want)
				}
			}
		}
	}
}

func TestRunReturnsNilOnCancel(t *testing.T) {
	for _, traffic := range []bool{false, true} {
		a, b := tunnels(t, nil)
		if traffic {
			defer flood(t, a, b)()
		}
		for _, s := range []*site{a, b} {
			start := time.Now()
			s.cancel()
			if err := s.end(t); err != nil {
				t.Errorf("traffic %v: Run = %v, want nil", traffic, err)
			}
			t.Logf("traffic %v: ended after %v", traffic, time.Since(start))
			if _, err := s.host.Netlink().LinkByName("tun01"); err == nil {
				t.Errorf("traffic %v: the link is still there", traffic)
			}
		}
	}
}

func TestRunReturnsErrDeleted(t *testing.T) {
	a, b := tunnels(t, nil)
	defer flood(t, a, b)()
	for _, s := range []*site{a, b} {
		if err := s.host.DeleteLink("tun01"); err != nil {
			t.Fatal(err)
		}
		if err := s.end(t); !errors.Is(err, tunnel.ErrDeleted) {
			t.Errorf("Run = %v, want ErrDeleted", err)
		}
	}
}

// TestNothingIsLeft starts and stops one tunnel many times.
func TestNothingIsLeft(t *testing.T) {
	labtest.Long(t)
	a, b := hosts(t)
	cycle := func() {
		a.start(t, config(a, b))
		a.cancel()
		if err := a.end(t); err != nil {
			t.Fatal(err)
		}
	}
	cycle() // what the runtime opens once is open now
	goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)
	for range 200 {
		cycle()
	}
	labtest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := countDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
	links, err := a.host.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 2 { // lo, eth0
		t.Errorf("%d links are left, want 2", len(links))
	}
}

// TestFailedOpenLeavesNothing fails at each step that can fail.
func TestFailedOpenLeavesNothing(t *testing.T) {
	a, b := hosts(t)
	for name, change := range map[string]func(*tunnel.Config){
		"name taken":     func(c *tunnel.Config) { c.Name = "eth0" },
		"no such device": func(c *tunnel.Config) { c.Device = "nope" },
		"bad mtu":        func(c *tunnel.Config) { c.MTU = 1 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(a, b)
			change(&cfg)
			open := func() error {
				return a.host.Do(func() error {
					_, err := tunnel.Open(cfg, quiet())
					return err
				})
			}
			if open() == nil {
				t.Fatal("Open succeeded")
			}
			descriptors := countDescriptors(t)
			for range 20 {
				open()
			}
			if n := countDescriptors(t); n > descriptors {
				t.Errorf("%d descriptors, %d before", n, descriptors)
			}
			if _, err := a.host.Netlink().LinkByName("tun01"); err == nil {
				t.Error("the link is still there")
			}
		})
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// flood sends datagrams from a to b, which counts them, until stop.
func flood(t testing.TB, a, b *site) (stop func()) {
	t.Helper()
	f := newFlow(t, a, b)
	var done atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !done.Load() {
			f.out.Write(f.datagram) // fails when the tunnel is gone
		}
	}()
	labtest.WaitFor(t, "traffic", func() bool { return b.tunnel.Stats().RX.Packets > 100 })
	return func() {
		done.Store(true)
		<-ended
		f.out.Close()
		f.in.Close()
	}
}

// flow is a pair of UDP sockets with a tunnel between them.
type flow struct {
	out, in  *net.UDPConn
	datagram []byte
}

func newFlow(t testing.TB, a, b *site) *flow {
	t.Helper()
	f := &flow{datagram: make([]byte, 1000)}
	if err := errors.Join(
		b.host.Do(func() (err error) {
			f.in, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.inner, 0)))
			return err
		}),
		a.host.Do(func() (err error) {
			f.out, err = net.DialUDP("udp4", nil, f.in.LocalAddr().(*net.UDPAddr))
			return err
		}),
	); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestHeapStaysFlat sends 100 000 packets through the whole engine, both ends in
// this process, and counts the allocations.
func TestHeapStaysFlat(t *testing.T) {
	const packets, window = 100_000, 64
	for name, offload := range map[string]bool{"offload": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			a, b := tunnels(t, func(c *tunnel.Config) { c.NoOffload = !offload })
			f := newFlow(t, a, b)
			defer f.out.Close()
			defer f.in.Close()
			if err := f.in.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 2000)
			exchange := func(n int) {
				for range n / window {
					for range window {
						if _, err := f.out.Write(f.datagram); err != nil {
							t.Fatal(err)
						}
					}
					for range window {
						if _, err := f.in.Read(buf); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			exchange(10 * window)
			defer a.tunnel.PauseUnderlay()()
			defer b.tunnel.PauseUnderlay()()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			exchange(packets)
			runtime.ReadMemStats(&after)

			if got := b.tunnel.Stats().RX.Packets; got < packets {
				t.Fatalf("%d packets came through the tunnel, want %d", got, packets)
			}
			// One allocation in each batch would be 1500 and more.
			if n := after.Mallocs - before.Mallocs; n > 1000 {
				t.Errorf("%d allocations for %d packets", n, packets)
			}
		})
	}
}
