package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// sizes are the numbers of tunnels in one process that BenchmarkScale measures.
var sizes = []int{1, 10, 100, 1000}

// many is two hosts with a process each, between which run many tunnels.
type many struct {
	a, b   [2]*site // the ends of the first and of the last tunnel
	bareA  *site    // the hosts by their outer addresses, for packets past all tunnels
	bareB  *site
	config string // of a
	run    *netlab.Process
	log    *output // of a
	start  time.Duration
	slab   int // that a's tunnels took, in bytes
}

// output is what a process has written.
type output struct{ labtest.Output }

func (o *output) count(text string) int {
	return strings.Count(o.String(), text)
}

// ends returns the addresses of tunnel i: outer ones of the host b, and inner ones.
func ends(i int) (outer, innerA, innerB netip.Addr) {
	hi, lo := byte(i/250), byte(1+i%250)
	return netip.AddrFrom4([4]byte{10, 201, hi, lo}), netip.AddrFrom4([4]byte{172, 20, hi, lo}), netip.AddrFrom4([4]byte{172, 21, hi, lo})
}

// startMany starts n tunnels from one address of a to n addresses of b. The process of a gets flags.
func startMany(tb testing.TB, n int, flags ...string) *many {
	tb.Helper()
	labtest.Need(tb, "root", "tun", "ip")
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < uint64(8*n) {
		tb.Skipf("%d tunnels need some %d descriptors, and the limit is %d (ulimit -n)", n, 8*n, limit.Cur)
	}
	net := newNetwork(tb)
	var addrs, configA, configB strings.Builder
	table := func(b *strings.Builder, i int, local, remote, address, peer netip.Addr) {
		fmt.Fprintf(b, "[tunnel.t%d]\nlocal = %q\nremote = %q\naddress = %q\npeer = %q\n", i, local, remote, address, peer)
	}
	for i := range n {
		outer, innerA, innerB := ends(i)
		fmt.Fprintf(&addrs, "addr add %v/32 dev %s\n", outer, cable)
		table(&configA, i, net.a.outer, outer, innerA, innerB)
		table(&configB, i, outer, net.a.outer, innerB, innerA)
	}
	ipBatch(tb, net.b.host, addrs.String())
	if err := net.a.host.AddRoute("10.201.0.0/16", net.b.outer.String()); err != nil {
		tb.Fatal(err)
	}
	m := &many{config: filepath.Join(tb.TempDir(), "a.toml"), log: &output{}}
	runConfig(tb, net.b, filepath.Join(tb.TempDir(), "b.toml"), configB.String(), &output{}, n)
	slab := kernelSlab(tb)
	begin := time.Now()
	m.run = runConfig(tb, net.a, m.config, configA.String(), m.log, n, flags...)
	m.start, m.slab = time.Since(begin), kernelSlab(tb)-slab
	m.bareA = &site{net.a.host, net.a.outer, net.a.outer}
	m.bareB = &site{net.b.host, net.b.outer, net.b.outer}
	for k, i := range []int{0, n - 1} {
		outer, innerA, innerB := ends(i)
		m.a[k], m.b[k] = &site{net.a.host, net.a.outer, innerA}, &site{net.b.host, outer, innerB}
	}
	return m
}

// runConfig runs the tunnels of a configuration on s, and returns when all n links are up.
func runConfig(tb testing.TB, s *site, path, config string, log *output, n int, flags ...string) *netlab.Process {
	tb.Helper()
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(goipip(tb), append([]string{"run", "--config", path}, flags...)...)
	cmd.Stderr = log
	p, err := s.host.Start(cmd)
	if err != nil {
		tb.Fatal(err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	for log.count(`msg="tunnel is up"`) < n {
		if time.Now().After(deadline) {
			tb.Fatalf("%d of %d tunnels are up", log.count("tunnel is up"), n)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return p
}

// goipip is the program that is measured.
func goipip(tb testing.TB) string {
	tb.Helper()
	if program := os.Getenv("GOIPIP_BIN"); program != "" {
		return program
	}
	return labtest.BuildGoipip(tb)
}

// ipBatch runs lines of ip(8) on a host.
func ipBatch(tb testing.TB, h *netlab.Host, lines string) {
	tb.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	p, err := h.Start(cmd)
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.Wait(labtest.Context(tb)); err != nil {
		tb.Fatal(err)
	}
}

// kernelSlab returns what the kernel's slab allocators hold, in bytes (proc_meminfo(5)).
func kernelSlab(tb testing.TB) int { return field(tb, "/proc/meminfo", "Slab:") << 10 }

// field returns the first number behind a name in a file of /proc.
func field(tb testing.TB, path, name string) (n int) {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n"+name)
	if name == "Slab:" && rest == "" {
		tb.Fatalf("%s has no %s", path, name)
	}
	if _, err := fmt.Sscan(rest, &n); err != nil {
		tb.Fatalf("%s in %s: %v", name, path, err)
	}
	return n
}

func (m *many) status(tb testing.TB, name string) int {
	tb.Helper()
	return field(tb, fmt.Sprintf("/proc/%d/status", m.run.Pid()), name)
}

// idle returns the share of one CPU in percent that a process takes without packets.
func (m *many) idle(tb testing.TB) float64 {
	tb.Helper()
	const settle, watch = time.Second, 4 * time.Second
	time.Sleep(settle)
	return 100 * m.cpu(tb, watch).Seconds() / watch.Seconds()
}

// cpu returns the CPU time that a process takes from now on for d.
func (m *many) cpu(tb testing.TB, d time.Duration) time.Duration {
	tb.Helper()
	before, err := cpuTime(m.run.Pid())
	if err != nil {
		tb.Fatal(err)
	}
	time.Sleep(d)
	after, err := cpuTime(m.run.Pid())
	if err != nil {
		tb.Fatal(err)
	}
	return after - before
}

// BenchmarkScale measures a process with some number of tunnels: its start, what it
// takes, and what one of the tunnels gives.
func BenchmarkScale(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("tunnels=%d", n), func(b *testing.B) {
			for b.Loop() {
				m := startMany(b, n)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(m.start.Seconds(), "start-s")
				b.ReportMetric(float64(m.slab)/float64(n)/1024, "slab-KiB/tunnel")
				b.ReportMetric(m.idle(b), "idle-%")
				alone := m
				if n > 1 {
					alone = startMany(b, 1)
				}
				one, ref := m.stream(b), alone.stream(b)
				var took, refTook []time.Duration
				for range 8 { // in turns, so that what disturbs the machine disturbs both
					took, refTook = append(took, one()), append(refTook, ref())
				}
				b.ReportMetric(gigabits(took), "stream-Gbit/s")
				b.ReportMetric(gigabits(refTook), "alone-Gbit/s")
				pings := ping(b, m.a[1], m.b[1])
				trips := piece(b, pings, 100).rtts
				slices.Sort(trips)
				b.ReportMetric(microseconds(percentile(trips, 50)), "ping-µs")
				b.ReportMetric(float64(m.status(b, "VmRSS:"))/1024, "rss-MiB")
				b.ReportMetric(float64(m.status(b, "Threads:")), "threads")
			}
		})
	}
}

// streamPiece is how much stream moves at a time, in bytes.
const streamPiece = 64 << 20

// stream opens a TCP stream over the last tunnel. next moves one piece, and returns how long
// that took.
func (m *many) stream(tb testing.TB) (next func() time.Duration) {
	tb.Helper()
	move := streams(1, "cubic")(tb, m.a[1], m.b[1])
	piece(tb, move, streamPiece/4)
	return func() time.Duration {
		begin := time.Now()
		piece(tb, move, streamPiece)
		return time.Since(begin)
	}
}

// gigabits returns the median rate of pieces of a stream, in Gbit/s.
func gigabits(took []time.Duration) float64 {
	slices.Sort(took)
	return 8 * streamPiece / 1e9 / percentile(took, 50).Seconds()
}

// piece moves one piece of a load.
func piece(tb testing.TB, move move, size int) tally {
	tb.Helper()
	t, err := move(size, time.Now().Add(pieceTimeout))
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// BenchmarkBusy moves 100 streams over one tunnel, or over 100.
func BenchmarkBusy(b *testing.B) {
	const all = 100
	for _, n := range []int{1, all} {
		b.Run(fmt.Sprintf("tunnels=%d", n), func(b *testing.B) {
			for b.Loop() {
				m := startMany(b, n)
				open := make([]*stream, all)
				for i := range open {
					_, innerA, innerB := ends(i % n)
					open[i] = openStream(b, &site{m.a[0].host, m.a[0].outer, innerA}, &site{m.b[0].host, m.b[0].outer, innerB}, "cubic")
				}
				load := func(size int, deadline time.Time) (tally, error) { return moveStreams(open, size, deadline) }
				piece(b, load, 64<<20)
				begin := time.Now()
				t := piece(b, load, 512<<20)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(8*float64(t.bytes)/1e9/time.Since(begin).Seconds(), "sum-Gbit/s")
			}
		})
	}
}

// BenchmarkReload has one of 1000 tunnels changed by SIGHUP, while datagrams pass another.
func BenchmarkReload(b *testing.B) { b.Run("tunnels=1000", reload) }

func reload(b *testing.B) {
	for b.Loop() {
		m := startMany(b, 1000)
		result := probe(b, m.a[1], m.b[1])
		config, err := os.ReadFile(m.config)
		if err != nil {
			b.Fatal(err)
		}
		config = bytes.Replace(config, []byte("[tunnel.t0]\n"), []byte("[tunnel.t0]\nttl = 9\n"), 1)
		if err := os.WriteFile(m.config, config, 0o600); err != nil {
			b.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		begin := time.Now()
		if err := m.run.Signal(syscall.SIGHUP); err != nil {
			b.Fatal(err)
		}
		labtest.WaitFor(b, "the end of the reload", func() bool { return m.log.count("was read again") > 0 })
		took := time.Since(begin)
		time.Sleep(200 * time.Millisecond)
		r := result()
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(took.Seconds()*1000, "reload-ms")
		b.ReportMetric(float64(r.lost), "lost")
		b.ReportMetric(r.gap.Seconds()*1000, "gap-ms")
	}
}

// BenchmarkRoutes changes 10 000 routes of the host of 1000 tunnels, while datagrams pass one.
func BenchmarkRoutes(b *testing.B) { b.Run("tunnels=1000", changeRoutes) }

func changeRoutes(b *testing.B) {
	const routes = 5000
	for b.Loop() {
		m := startMany(b, 1000)
		tunnel, bare := probe(b, m.a[1], m.b[1]), probe(b, m.bareA, m.bareB)
		before, err := cpuTime(m.run.Pid())
		if err != nil {
			b.Fatal(err)
		}
		burst(b, m.a[0].host, routes)
		after, err := cpuTime(m.run.Pid())
		if err != nil {
			b.Fatal(err)
		}
		r, cable := tunnel(), bare()
		time.Sleep(time.Second)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(r.gap.Seconds()*1000, "gap-ms")
		b.ReportMetric(cable.gap.Seconds()*1000, "cable-gap-ms")
		b.ReportMetric(float64(r.lost), "lost")
		b.ReportMetric(1000*(after-before).Seconds(), "cpu-ms")
		b.ReportMetric(100*m.cpu(b, 2*time.Second).Seconds()/2, "after-%")
	}
}

// burst adds n routes to a host and deletes them. It does so without ip(8), which lists all
// links first, and that alone holds a CPU for some ms where there are 1000.
func burst(tb testing.TB, h *netlab.Host, n int) {
	tb.Helper()
	dev, err := h.Netlink().LinkByName(cable)
	if err != nil {
		tb.Fatal(err)
	}
	for _, change := range []func(*netlink.Route) error{h.Netlink().RouteAdd, h.Netlink().RouteDel} {
		for i := range n {
			to := netlink.NewIPNet(net.IPv4(10, byte(1+i>>16), byte(i>>8), byte(i)))
			if err := change(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
				tb.Fatal(err)
			}
		}
	}
}

// probed is what came of a probe.
type probed struct {
	lost int
	gap  time.Duration // the longest between two datagrams
}

// probe sends 1000 datagrams a second from one site to another until the result is asked for.
func probe(tb testing.TB, from, to *site) (result func() probed) {
	tb.Helper()
	out, in := openDatagrams(tb, from, to)
	stop, sent, done := make(chan struct{}), make(chan uint64, 1), make(chan probed, 1)
	go func() {
		var n uint64
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				sent <- n
				return
			case <-tick.C:
				n++
				_, _ = out.Write(binary.BigEndian.AppendUint64(nil, n))
			}
		}
	}()
	go func() {
		var (
			r       probed
			arrived uint64
			last    time.Time
			buf     [64]byte
		)
		for {
			_, err := in.Read(buf[:])
			now := time.Now()
			if err != nil {
				if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
					r.lost = int(<-sent) - int(arrived)
				}
				done <- r
				return
			}
			if arrived++; arrived > 1 {
				r.gap = max(r.gap, now.Sub(last))
			}
			last = now
		}
	}()
	return func() probed {
		close(stop)
		_ = in.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		return <-done
	}
}
