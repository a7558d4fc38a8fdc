package rawsock_test

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/stats"
	"goipip/rawsock"
)

func TestReasonOf(t *testing.T) {
	tests := []struct {
		errno syscall.Errno
		want  stats.Reason
	}{
		{unix.ENETUNREACH, stats.NoRoute},
		{unix.EHOSTUNREACH, stats.NoRoute},
		{unix.ENETDOWN, stats.NoRoute},
		{unix.ENODEV, stats.NoRoute},
		{unix.ENXIO, stats.NoRoute},
		{unix.EINVAL, stats.NoRoute},
		{unix.EMSGSIZE, stats.TooBig},
		{unix.ENOBUFS, stats.Congested},
		{unix.ENOMEM, stats.Congested},
		{unix.EPERM, stats.Filtered},
		{unix.EACCES, stats.Filtered},
		{unix.EFAULT, stats.SendError},
		{unix.ECONNREFUSED, stats.SendError},
		{unix.EIO, stats.SendError},
	}
	for _, tt := range tests {
		if got := rawsock.ReasonOf(tt.errno); got != tt.want {
			t.Errorf("%v is %v, want %v", unix.ErrnoName(tt.errno), got, tt.want)
		}
	}
}

// far is an address that the left host has no route to.
var far = netip.MustParseAddr("192.168.8.101")

// T3: what keeps an outer packet from being sent, and the reason it counts under.
func TestT3_Refused(t *testing.T) {
	tests := []struct {
		name    string
		cfg     config
		device  string // that packets leave by
		prepare func(t *testing.T, left *netlab.Host)
		want    stats.Reason
	}{
		{"no route", toFar, "", nil, stats.NoRoute},
		{"blackhole", toFar, "", addRoute(unix.RTN_BLACKHOLE), stats.NoRoute},
		{"unreachable", toFar, "", addRoute(unix.RTN_UNREACHABLE), stats.NoRoute},
		{"throw", toFar, "", addRoute(unix.RTN_THROW), stats.NoRoute},
		{"prohibit", toFar, "", addRoute(unix.RTN_PROHIBIT), stats.Filtered},
		{"device down", leftEnd, "", setDown, stats.NoRoute},
		{"bound device down", leftEnd, "eth0", setDown, stats.NoRoute},
		{"bound device deleted", leftEnd, "eth0", deleteLink, stats.NoRoute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			left, _ := newPair(t)
			// From an address that does not go away with a device: what is tested
			// is the route, not the address.
			tt.cfg.Local = netip.MustParseAddr("10.0.0.100")
			must(t, left.AddAddr("lo", "10.0.0.100/32"))
			s := newSender(t, left, by(t, tt.cfg, left, tt.device))
			if tt.prepare != nil {
				tt.prepare(t, left)
			}
			s.send(t, "a", "b", "c")
			want := []refusal{{0, tt.want}, {1, tt.want}, {2, tt.want}}
			if diff := cmp.Diff(want, s.refusals); diff != "" {
				t.Errorf("refusals (-want +got):\n%s", diff)
			}
		})
	}
}

var toFar = config{Remote: far}

// by returns cfg with a device of h, or without one.
func by(t *testing.T, cfg config, h *netlab.Host, device string) config {
	t.Helper()
	cfg.Device = deviceIndex(t, h, device)
	return cfg
}

// deviceIndex returns the index of a device, and 0 for no name.
func deviceIndex(t *testing.T, h *netlab.Host, device string) int {
	t.Helper()
	if device == "" {
		return 0
	}
	l, err := h.Netlink().LinkByName(device)
	must(t, err)
	return l.Attrs().Index
}

// addRoute adds a route to far of a type that leads nowhere.
func addRoute(typ int) func(t *testing.T, h *netlab.Host) {
	return func(t *testing.T, h *netlab.Host) {
		t.Helper()
		must(t, h.Netlink().RouteAdd(&netlink.Route{Type: typ, Dst: netlink.NewIPNet(far.AsSlice())}))
	}
}

func setDown(t *testing.T, h *netlab.Host) {
	t.Helper()
	must(t, h.SetDown("eth0"))
}

func deleteLink(t *testing.T, h *netlab.Host) {
	t.Helper()
	must(t, h.DeleteLink("eth0"))
}

// The route comes and goes while the sender stays.
func TestT3_RouteLater(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", far.String()+"/32"))
	cfg := config{Local: leftAddr, Remote: far}
	g := startReceiving(newConnected(t, right, reverse(cfg)))
	s := newSender(t, left, cfg)
	for range 3 {
		s.send(t, "lost")
		if diff := cmp.Diff([]refusal{{0, stats.NoRoute}}, s.refusals); diff != "" {
			t.Fatalf("refusals (-want +got):\n%s", diff)
		}
		s.refusals = nil
		must(t, left.AddRoute(far.String()+"/32", rightAddr.String()))
		s.mustSend(t, "here")
		g.check(t, "here")
		must(t, left.Netlink().RouteDel(&netlink.Route{Dst: netlink.NewIPNet(far.AsSlice())}))
	}
}

// Whatever is refused, the others of the batch go on, in order, and each refusal
// has the place of its packet.
func TestRefused_AmongOthers(t *testing.T) {
	for name, use := range outlets {
		t.Run(name, func(t *testing.T) { refusedAmongOthers(t, use) })
	}
}

func refusedAmongOthers(t *testing.T, use outlet) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	use(t, s, left, right)
	g := startReceiving(newConnected(t, right, rightEnd))
	fits, tooBig := strings.Repeat("x", 1480), strings.Repeat("x", 1481)
	tests := []struct {
		name   string
		tooBig []int // places in a batch of batch
	}{
		{"none", nil},
		{"first", []int{0}},
		{"middle", []int{5}},
		{"last", []int{63}},
		{"some", []int{0, 1, 7, 30, 31, 32, 62, 63}},
		{"all but one", append(span(0, 40), span(41, 64)...)},
		{"all", span(0, 64)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			payloads := make([]string, rawsock.BatchSize)
			var accepted []string
			for i := range payloads {
				payloads[i] = string(rune('0'+i)) + fits[1:]
			}
			var want []refusal
			for _, i := range tt.tooBig {
				payloads[i] = tooBig
				want = append(want, refusal{i, stats.TooBig})
			}
			for _, p := range payloads {
				if p != tooBig {
					accepted = append(accepted, p)
				}
			}
			s.refusals = nil
			s.send(t, payloads...)
			if diff := cmp.Diff(want, s.refusals); diff != "" {
				t.Errorf("refusals (-want +got):\n%s", diff)
			}
			s.refusals = nil
			s.mustSend(t, "end")
			g.check(t, append(accepted, "end")...)
		})
	}
}

// span returns the numbers from first to end−1.
func span(first, end int) (numbers []int) {
	for i := first; i < end; i++ {
		numbers = append(numbers, i)
	}
	return numbers
}

// A packet longer than the device's MTU is refused even where it may be
// fragmented: the kernel does that for no socket with IP_HDRINCL (T12).
func TestT12_TooBigWithoutDF(t *testing.T) {
	left, _ := newPair(t)
	s := newSender(t, left, leftEnd)
	payload := make([]byte, 1481)
	p := outer(leftEnd, len(payload))
	p.SetDF(false)
	p.SetID(1)
	s.Add(p, payload)
	must(t, s.Flush())
	if diff := cmp.Diff([]refusal{{0, stats.TooBig}}, s.refusals); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
}
