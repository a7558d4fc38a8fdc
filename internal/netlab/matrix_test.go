package netlab_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

var (
	matrixSeed = flag.Uint64("netlab.seed", 1, "of TestMatrix")
	matrixSize = flag.Int("netlab.n", 15, "how many combinations TestMatrix tries")
)

// combination is one way to set up the lab. Each value of each dimension is in some of them.
type combination struct {
	mtu          int // of the tunnel; 0 for what goipip chooses
	road, queues string
	offload      string
	ethtool      [4]string // -K, for veth01, veth02, and their ends at the router
}

func (c combination) String() string {
	return fmt.Sprintf("mtu %d, tx %s, queues %s, offload %s", c.mtu, c.road, c.queues, c.offload)
}

// combinations returns n random ones.
func combinations(r *rand.Rand, n int) []combination {
	// Some of every kind: what IPv4 has at least, up to a usual link, and far beyond.
	mtus := []func() int{
		func() int { return 0 }, func() int { return 68 + r.IntN(60) }, func() int { return 128 + r.IntN(1352) },
		func() int { return 1480 + r.IntN(65515-1480+1) }, func() int { return []int{68, 576, 1480, 9000, 65515}[r.IntN(5)] },
	}
	order := func(values ...string) func(i int) string {
		r.Shuffle(len(values), func(i, k int) { values[i], values[k] = values[k], values[i] })
		return func(i int) string { return values[i%len(values)] }
	}
	road, queues, offload := order("raw", "packet", "auto"), order("1", "2", "4"), order("auto", "auto", "off", "auto")
	all := make([]combination, n)
	for i := range all {
		c := &all[i]
		c.mtu = mtus[i%len(mtus)]()
		c.road, c.queues, c.offload = road(i), queues(i/3+i), offload(i)
		for k := range c.ethtool {
			for _, feature := range []string{"tso", "gso", "gro", "tx", "rx"} {
				c.ethtool[k] += fmt.Sprintf(" %s %s", feature, []string{"on", "off"}[r.IntN(2)])
			}
		}
	}
	return all
}

// TestMatrix transfers over TCP, 1, 4 and 32 flows at once in each direction, between the ends of the tunnel and between
// hosts behind them, with whatever MTU, offloads and options.
//
//	client ── ns01 ── router ── ns02 ── server
func TestMatrix(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	labtest.Need(t, "ethtool", "ip")
	t.Logf("-netlab.seed %d", *matrixSeed)
	r := rand.New(rand.NewPCG(*matrixSeed, 0))
	for i, c := range combinations(r, *matrixSize) {
		t.Run(fmt.Sprintf("%d: %v", i, c), func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

func (c combination) run(t *testing.T) {
	lab := labtest.New(t)
	l := newTunnelLabIn(t, lab)
	behind := path{a: newHost(t, lab, "client"), addrA: netip.MustParseAddr("10.1.0.2"), b: newHost(t, lab, "server"), addrB: netip.MustParseAddr("10.2.0.2")}
	if err := errors.Join(
		lab.Veth(behind.a, "eth0", l.ns01, "lan0"), lab.Veth(behind.b, "eth0", l.ns02, "lan0"),
		behind.a.AddAddr("eth0", "10.1.0.2/24"), behind.b.AddAddr("eth0", "10.2.0.2/24"),
		l.ns01.AddAddr("lan0", "10.1.0.1/24"), l.ns02.AddAddr("lan0", "10.2.0.1/24"),
		behind.a.AddRoute("default", "10.1.0.1"), behind.b.AddRoute("default", "10.2.0.1"),
		l.ns01.Sysctl("net.ipv4.ip_forward", "1"), l.ns02.Sysctl("net.ipv4.ip_forward", "1"),
	); err != nil {
		t.Fatal(err)
	}
	for i, h := range []struct {
		*netlab.Host
		device string
	}{{l.ns01, "veth01"}, {l.ns02, "veth02"}, {l.router, "veth01_p"}, {l.router, "veth02_p"}} {
		run(t, h.Host, "ethtool -K "+h.device+c.ethtool[i])
	}
	options := []string{"--tx", c.road, "--queues", c.queues, "--offload", c.offload}
	if c.mtu > 0 {
		options = append(options, "--mtu", strconv.Itoa(c.mtu))
	}
	tun01, tun02 := l.start(t, options...)
	if err := errors.Join(l.ns01.AddRoute("10.2.0.0/24", "tun01"), l.ns02.AddRoute("10.1.0.0/24", "tun02")); err != nil {
		t.Fatal(err)
	}
	each := int64(2 << 20)
	if c.mtu > 0 && c.mtu < 300 {
		each = 128 << 10
	}
	if c.mtu > 0 && c.mtu < 128 {
		// TCP itself makes no segment short enough (net.ipv4.tcp_min_snd_mss): they are to be fragmented.
		for _, h := range []*netlab.Host{l.ns01, l.ns02} {
			if err := h.Sysctl("net.ipv4.ip_no_pmtu_disc", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range []path{l.path, behind} {
		p.pingBothWays(t)
		for _, flows := range []int{1, 4, 32} {
			var transfers sync.WaitGroup
			for range flows {
				transfers.Go(func() { p.transfer(t, each/int64(flows)) })
				transfers.Go(func() { p.reverse().transfer(t, each/int64(flows)) })
			}
			transfers.Wait()
		}
		if t.Failed() {
			t.Fatalf("with ethtool -K%s", strings.Join(c.ethtool[:], ";"))
		}
	}
	for _, g := range []*background{tun01, tun02} {
		if c.mtu > 1480 { // which the path does not take
			g.out.waitFor(t, "packets above 1480 bytes are fragmented")
		} else {
			g.hasNoComplaint(t)
		}
	}
}
