package netlab_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// exits fails the test unless the process ends with status 0 after do, and its link with it. It returns how long that took.
func (b *background) exits(t *testing.T, e end, do func() error) time.Duration {
	t.Helper()
	start := time.Now()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	if err := b.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	took := time.Since(start)
	if hasLink(e.host, e.dev) {
		t.Errorf("%s is still there after the end of %v", e.dev, b)
	}
	labtest.WaitFor(t, "the raw sockets to be gone from "+e.host.Name, func() bool { return rawSockets(t, e.host) == 0 })
	return took
}

// ways to end a tunnel in peace.
var ways = map[string]func(*background, end) error{
	"SIGTERM": func(b *background, _ end) error { return b.Signal(unix.SIGTERM) },
	"SIGINT":  func(b *background, _ end) error { return b.Signal(unix.SIGINT) },
	"delete":  func(_ *background, e end) error { return e.host.DeleteLink(e.dev) },
}

// A tunnel ends within a second. The fastest of a few attempts tells, because the machine may be busy with other tests,
// and a tunnel that waits for a packet takes forever each time.
func TestEnds(t *testing.T) {
	t.Parallel()
	const exitTime, attempts = time.Second, 3
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			fastest := map[string]time.Duration{"idle": time.Hour, "in traffic": time.Hour, "after the peer": time.Hour}
			took := func(what string, d time.Duration) { fastest[what] = min(fastest[what], d) }
			for range attempts {
				l := newTunnelLab(t)
				tun01, tun02 := l.start(t)
				took("idle", tun01.exits(t, l.end01, func() error { return way(tun01, l.end01) }))

				tun01 = l.end01.start(t, "--queues", "2")
				stop := l.flood(t)
				took("in traffic", tun01.exits(t, l.end01, func() error { return way(tun01, l.end01) }))
				// Now ns01 answers to tun02's packets with ICMP errors.
				took("after the peer", tun02.exits(t, l.end02, func() error { return way(tun02, l.end02) }))
				stop()
			}
			for what, d := range fastest {
				if d > exitTime {
					t.Errorf("%s: takes %v at least, want at most %v", what, d, exitTime)
				}
			}
		})
	}
}

// flood sends datagrams both ways, as fast as it goes, until the returned function is called. It returns when they arrive.
func (p path) flood(t *testing.T) (stop func()) {
	t.Helper()
	ended := make(chan struct{})
	var senders sync.WaitGroup
	stop = sync.OnceFunc(func() { close(ended); senders.Wait() })
	t.Cleanup(stop)
	for _, p := range []path{p, p.reverse()} {
		to, from := listen(t, p.b, "udp", p.addrB), listen(t, p.a, "udp", p.addrA)
		senders.Go(func() {
			for datagram := make([]byte, maxEcho); ; {
				select {
				case <-ended:
					return
				default:
					from.WriteTo(datagram, to.LocalAddr()) // It fails as soon as the link is gone.
				}
			}
		})
		to.SetDeadline(time.Now().Add(answerTime))
		if _, _, err := to.ReadFrom(make([]byte, maxEcho)); err != nil {
			t.Errorf("flood from %s: %v", p.a.Name, err)
		}
	}
	return stop
}

func TestDownAndUp(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	l := newTunnelLab(t)
	tun01, tun02 := l.start(t)
	l.pingBothWays(t)
	before := descriptors(t, tun01)
	for range 3 {
		run(t, l.ns01, "ip link set tun01 down")
		l.dead(t, netlab.PingOptions{})
		l.reverse().dead(t, netlab.PingOptions{Count: 10, Interval: time.Millisecond})
		run(t, l.ns01, "ip link set tun01 up")
		l.pingBothWays(t)
	}
	l.carriesTCP(t)

	stop := l.flood(t)
	for range 20 {
		run(t, l.ns01, "ip link set tun01 down")
		run(t, l.ns01, "ip link set tun01 up")
	}
	stop()
	l.revives(t)
	l.pingBothWays(t)
	if after := descriptors(t, tun01); after != before {
		t.Errorf("%v has %d descriptors after all that, and had %d before", tun01, after, before)
	}
	tun01.hasNoComplaint(t)
	tun02.hasNoComplaint(t)
}

func TestRename(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	l := newTunnelLab(t)
	tun01, _ := l.start(t)
	run(t, l.ns01, "ip link set tun01 down")
	run(t, l.ns01, "ip link set tun01 name uplink")
	run(t, l.ns01, "ip link set uplink up")
	l.pingBothWays(t)
	l.transfer(t, transferLen)

	l.end01.dev = "uplink"
	tun01.exits(t, l.end01, func() error { return l.ns01.DeleteLink("uplink") })

	// The old name is free again.
	l.end01.dev = "tun01"
	l.end01.start(t)
	l.pingBothWays(t)
}

func TestChangeMTU(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	l := newTunnelLab(t)
	l.start(t)
	for _, mtu := range []int{1400, 576, 1480} {
		run(t, l.ns01, fmt.Sprintf("ip link set tun01 mtu %d", mtu))
		largest := mtu - 20 - 8
		l.ping(t, netlab.PingOptions{Size: largest, DF: true})
		l.refused(t, largest+1)
		l.ping(t, netlab.PingOptions{Size: 4000})
		l.transfer(t, transferLen)
		l.reverse().transfer(t, transferLen)
	}
}

// The outer packets stay where goipip was started, which is what people use it for.
func TestMoveToNamespace(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := labtest.New(t)
			l := newTunnelLabIn(t, lab)
			tun01, _ := l.start(t)
			l.pingBothWays(t)

			inside := newHost(t, lab, "inside")
			holder := start(t, inside, exec.Command("sleep", "1000")) // ip(8) knows a namespace by a process
			run(t, l.ns01, fmt.Sprintf("ip link set tun01 netns %d", holder.Pid()))
			moved := l.end01
			moved.host = inside
			moved.address(t)
			run(t, inside, "ip link set tun01 up")

			p := path{a: inside, b: l.ns02, addrA: l.addrA, addrB: l.addrB}
			p.pingBothWays(t)
			p.carriesTCP(t)
			tun01.exits(t, moved, func() error { return way(tun01, moved) })
		})
	}
}

func TestNameTaken(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.start(t)
	before := links(t, l.ns01)
	for _, dev := range []string{"tun01", "veth01", "lo"} {
		for form, args := range map[string][]string{
			"flags": {"-name", dev, "-local", "192.168.6.101", "-remote", "192.168.8.102"},
			"words": {"tunnel", "add", dev, "mode", "ipip", "remote", "192.168.8.102", "local", "192.168.6.101"},
		} {
			out := fails(t, l.ns01, args...)
			want := strconv.Quote(dev)
			if form == "words" {
				want = `"tunl0" failed: File exists` // as ip
			}
			if strings.Count(out, "\n") != 1 || !strings.Contains(out, want) {
				t.Errorf("goipip by %s with the taken name %s says %q, want one line with %s", form, dev, out, want)
			}
		}
	}
	if after := links(t, l.ns01); !slices.Equal(after, before) {
		t.Errorf("devices are %v after failed starts, and were %v before", after, before)
	}
	labtest.WaitFor(t, "one process after failed starts", func() bool { return len(goipips(t, l.ns01)) == 1 })
	l.pingBothWays(t)
}

// fails fails the test unless a call of goipip ends with status 1. It returns what that said.
func fails(t *testing.T, host *netlab.Host, args ...string) string {
	t.Helper()
	g := start(t, host, goipipCommand(t, args...))
	err := g.Wait(labtest.Context(t))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("goipip %v: %v, want exit status 1", args, err)
	}
	return g.out.String()
}

// TestCycles starts and ends many tunnels, of which nothing may stay, here or in the process at the other end.
func TestCycles(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	const cycles, traffic, words = 200, 20, 7 // each 20th carries traffic, each 7th is in the background
	l := newTunnelLab(t)
	_, tun02 := l.start(t)
	l.pingBothWays(t)
	descriptorsBefore := descriptors(t, tun02)
	if err := l.ns01.DeleteLink("tun01"); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "the end of the first tunnel", func() bool { return len(goipips(t, l.ns01)) == 0 })
	before := links(t, l.ns01)
	inTurn := slices.Sorted(maps.Keys(ways))
	for i := range cycles {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			if i%words == 0 {
				deletes(t, l.end01, before, addByWords(t, l.end01))
				return
			}
			tun01 := l.end01.start(t, "--queues", strconv.Itoa(1+i%4))
			if i%traffic == 0 {
				// tun02 met ICMP errors while it was alone, and its next senders hear of them (T8). A connection that ns02 is
				// about to accept would not survive that (tcp_req_err in net/ipv4/tcp_ipv4.c), so they are used up first.
				l.ping(t, netlab.PingOptions{Count: 50})
				l.transfer(t, transferLen/8)
			}
			way := ways[inTurn[i%len(inTurn)]]
			tun01.exits(t, l.end01, func() error { return way(tun01, l.end01) })
		})
		if t.Failed() {
			t.Fatal("stopped at the first failure")
		}
	}
	if after := links(t, l.ns01); !slices.Equal(after, before) {
		t.Errorf("devices are %v after %d tunnels, and were %v before", after, cycles, before)
	}
	if pids := goipips(t, l.ns01); len(pids) != 0 {
		t.Errorf("processes %v are left", pids)
	}
	if after := descriptors(t, tun02); after != descriptorsBefore {
		t.Errorf("%v has %d descriptors after %d tunnels of its peer, and had %d before", tun02, after, cycles, descriptorsBefore)
	}
}

// descriptors counts those of a process.
func descriptors(t *testing.T, b *background) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
