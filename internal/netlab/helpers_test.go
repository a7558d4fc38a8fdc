package netlab_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// unansweredTime is how long a ping that should not be answered, or not yet, waits. It is long for a path of a few hops in
// one machine.
const unansweredTime = 200 * time.Millisecond

// answerTime is when an answer that must come is given up, on a machine that may be busy.
const answerTime = 5 * time.Second

// run runs a command on host as a person types it there, and returns what it printed.
func run(t *testing.T, host *netlab.Host, line string) string {
	t.Helper()
	words := strings.Fields(line)
	out, err := host.Output(words[0], words[1:]...)
	if err != nil {
		t.Fatalf("%s# %s: %v", host.Name, line, err)
	}
	return out
}

// mentions fails the test for each of wants that text does not contain.
func mentions(t *testing.T, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not mention %q:\n%s", what, want, text)
		}
	}
}

// output collects what a process prints while the test reads it.
type output struct{ labtest.Output }

func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	labtest.WaitFor(t, "output "+text, func() bool { return strings.Contains(o.String(), text) })
}

// background is a process whose output the test reads, and whose end it awaits.
type background struct {
	*netlab.Process
	out   output
	ended chan struct{}
	err   error // valid when ended is closed
}

// start starts cmd on host, for the length of the test at most.
func start(t testing.TB, host *netlab.Host, cmd *exec.Cmd) *background {
	t.Helper()
	return startBy(t, host.Start, cmd)
}

// startBy does the same in a way of its own.
func startBy(t testing.TB, start func(*exec.Cmd) (*netlab.Process, error), cmd *exec.Cmd) *background {
	t.Helper()
	b := &background{ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &b.out, &b.out
	var err error
	if b.Process, err = start(cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(b.ended)
		b.err = b.Wait(context.Background())
	}()
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
		<-b.ended
		if t.Failed() {
			t.Logf("%v said:\n%s", b, &b.out)
		}
	})
	return b
}

// hasNoComplaint fails the test if the process, a goipip, has warned of something.
func (b *background) hasNoComplaint(t *testing.T) {
	t.Helper()
	if log := b.out.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("%v complains:\n%s", b, log)
	}
}

// goipipCommand is a call of goipip.
func goipipCommand(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(labtest.BuildGoipip(t), args...)
}

// end is one end of a tunnel: what there is to type for it.
type end struct {
	host          *netlab.Host
	dev           string
	local, remote string // of the outer header
	inner, peer   string // addresses of the link; inner may be empty for none
}

// start starts goipip with further options, and returns when its link is up and has its address. At the end of the test it
// must exit with status 0, however it is ended.
func (e end) start(t testing.TB, options ...string) *background {
	t.Helper()
	return e.startBy(t, e.host.Start, options...)
}

// startBy does the same in a way of its own.
func (e end) startBy(t testing.TB, start func(*exec.Cmd) (*netlab.Process, error), options ...string) *background {
	t.Helper()
	g := startBy(t, start, goipipCommand(t, slices.Concat([]string{"-name", e.dev, "-local", e.local, "-remote", e.remote}, options)...))
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
		if <-g.ended; g.err != nil {
			t.Error(g.err)
		}
	})
	labtest.WaitFor(t, e.dev+" on "+e.host.Name+" to be up", func() bool {
		select {
		case <-g.ended:
			t.Fatalf("goipip ended early: %v", g.err)
		default:
		}
		return isUp(e.host, e.dev)
	})
	e.address(t)
	return g
}

// address gives the link its address.
func (e end) address(t testing.TB) {
	t.Helper()
	if e.inner == "" {
		return
	}
	if err := e.host.AddPeer(e.dev, e.inner, e.peer); err != nil {
		t.Fatal(err)
	}
}

func isUp(host *netlab.Host, dev string) bool {
	link, err := host.Netlink().LinkByName(dev)
	return err == nil && link.Attrs().Flags&net.FlagUp != 0
}

func hasLink(host *netlab.Host, dev string) bool {
	_, err := host.Netlink().LinkByName(dev)
	return !errors.As(err, new(netlink.LinkNotFoundError))
}

// links returns the names of a host's devices.
func links(t *testing.T, host *netlab.Host) []string {
	t.Helper()
	list, err := host.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// path is two hosts, and the addresses under which each reaches the other through a tunnel.
type path struct {
	a, b         *netlab.Host
	addrA, addrB netip.Addr
}

// reverse is the same path seen from the other end.
func (p path) reverse() path { return path{a: p.b, b: p.a, addrA: p.addrB, addrB: p.addrA} }

// tunnelLab is Lab 2 of LAB.md, with the tunnel's ends to start.
type tunnelLab struct {
	ns01, ns02, router *netlab.Host
	end01, end02       end
	path
}

func newTunnelLab(t testing.TB) *tunnelLab {
	t.Helper()
	return newTunnelLabIn(t, labtest.New(t))
}

// newTunnelLabIn makes it in a lab that is to have further hosts.
func newTunnelLabIn(t testing.TB, lab *netlab.Lab) *tunnelLab {
	t.Helper()
	labtest.Need(t, "tun")
	var l tunnelLab
	var err error
	if l.ns01, l.ns02, l.router, err = lab.Lab2(); err != nil {
		t.Fatal(err)
	}
	l.end01 = end{l.ns01, "tun01", "192.168.6.101", "192.168.8.101", "172.56.1.101", "172.56.2.101"}
	l.end02 = end{l.ns02, "tun02", "192.168.8.101", "192.168.6.101", "172.56.2.101", "172.56.1.101"}
	l.path = path{l.ns01, l.ns02, netip.MustParseAddr(l.end01.inner), netip.MustParseAddr(l.end02.inner)}
	return &l
}

// start starts goipip on both ends, with the same further options.
func (l *tunnelLab) start(t testing.TB, options ...string) (tun01, tun02 *background) {
	t.Helper()
	return l.end01.start(t, options...), l.end02.start(t, options...)
}

// ping fails the test unless each request from a to b is answered, once.
func (p path) ping(t *testing.T, o netlab.PingOptions) {
	t.Helper()
	o.Timeout = answerTime
	result, err := p.a.Ping(labtest.Context(t), p.addrB, o)
	if err != nil {
		t.Error(err)
	} else if result.Received != result.Sent || result.Duplicates > 0 {
		t.Errorf("ping from %s to %v with %+v:\n%v, %d duplicates", p.a.Name, p.addrB, o, result, result.Duplicates)
	}
}

// dead fails the test if a request from a to b is answered.
func (p path) dead(t *testing.T, o netlab.PingOptions) {
	t.Helper()
	o.Timeout = unansweredTime
	result, err := p.a.Ping(labtest.Context(t), p.addrB, o)
	if err == nil && result.Received > 0 {
		t.Errorf("ping from %s to %v is answered", p.a.Name, p.addrB)
	}
}

// pingBothWays pings once in each direction, which needs both directions each time.
func (p path) pingBothWays(t *testing.T) {
	t.Helper()
	p.ping(t, netlab.PingOptions{})
	p.reverse().ping(t, netlab.PingOptions{})
}

// revives waits until pings from a to b are answered again.
func (p path) revives(t *testing.T) {
	t.Helper()
	labtest.WaitFor(t, "an answer to pings from "+p.a.Name, func() bool {
		result, err := p.a.Ping(labtest.Context(t), p.addrB, netlab.PingOptions{Timeout: unansweredTime})
		return err == nil && result.Received > 0
	})
}

// settles returns when all that was on the way there and back has arrived: a ping was, for as long as each way takes
// what the network does not send ahead of others.
func (p path) settles(t *testing.T, roundTrip time.Duration) {
	t.Helper()
	labtest.WaitFor(t, "a ping that overtakes nothing, from "+p.a.Name, func() bool {
		result, err := p.a.Ping(labtest.Context(t), p.addrB, netlab.PingOptions{Timeout: unansweredTime})
		return err == nil && result.Received > 0 && result.RTTs[0] >= roundTrip
	})
}

// refused fails the test unless a ping of size bytes with DF is too long for the path.
func (p path) refused(t *testing.T, size int) {
	t.Helper()
	if _, err := p.a.Ping(labtest.Context(t), p.addrB, netlab.PingOptions{Size: size, DF: true}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping from %s with %d bytes and DF: %v, want %v", p.a.Name, size, err, unix.EMSGSIZE)
	}
}

// startCapture starts a capture on dev.
func startCapture(t *testing.T, host *netlab.Host, dev string) *netlab.Capture {
	t.Helper()
	c, err := host.Capture(dev)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// headers returns the outer and the inner header of a captured ipip packet.
func headers(p netlab.Captured) (outer, inner *ipv4.Header, ok bool) {
	outer, err := ipv4.ParseHeader(p.Data)
	if err != nil || outer.Protocol != unix.IPPROTO_IPIP || outer.FragOff != 0 {
		return nil, nil, false
	}
	inner, err = ipv4.ParseHeader(p.Data[outer.Len:])
	return outer, inner, err == nil
}
