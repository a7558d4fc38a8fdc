package bench

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// Names of the devices of each host.
const (
	cable = "eth0"
	link  = "tun0"
)

// linkMTU is that of an ipip link over Ethernet, in bytes.
const linkMTU = 1480

// site is a host with one end of what is measured. All traffic is between inner
// addresses.
type site struct {
	host         *netlab.Host
	outer, inner netip.Addr
}

// network is two hosts on one cable, joined by a peer.
type network struct {
	a, b      *site
	processes []*netlab.Process // that the peer consists of, besides the kernel
}

// connect builds a network that ends with the test, and returns when packets
// pass between its inner addresses.
func connect(tb testing.TB, p peer, prepare ...func(testing.TB, *site)) *network {
	tb.Helper()
	labtest.Need(tb, p.allNeeds()...)
	n := newNetwork(tb)
	for _, f := range prepare {
		f(tb, n.a)
		f(tb, n.b)
	}
	for i, sites := range [][2]*site{{n.a, n.b}, {n.b, n.a}} {
		if process := p.ends[i](tb, sites[0], sites[1]); process != nil {
			n.processes = append(n.processes, process)
		}
	}
	ctx := labtest.Context(tb)
	labtest.WaitFor(tb, "a ping through "+p.name, func() bool {
		r, err := n.a.host.Ping(ctx, n.b.inner, netlab.PingOptions{Timeout: 100 * time.Millisecond})
		return err == nil && r.Received > 0
	})
	return n
}

// withoutOffloads has a site's device take no superpackets of tunnels.
func withoutOffloads(tb testing.TB, s *site) {
	tb.Helper()
	labtest.Need(tb, "ethtool")
	if out, err := s.host.Output("ethtool", "-K", cable, "tx-ipxip4-segmentation", "off"); err != nil {
		tb.Fatal(err, out)
	}
}

// newNetwork lays the cable.
func newNetwork(tb testing.TB) *network {
	tb.Helper()
	lab := labtest.New(tb)
	hostA, errA := lab.Host("a")
	hostB, errB := lab.Host("b")
	if err := errors.Join(errA, errB); err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(
		lab.Veth(hostA, cable, hostB, cable),
		hostA.AddAddr(cable, "192.168.6.1/24"),
		hostB.AddAddr(cable, "192.168.6.2/24"),
	); err != nil {
		tb.Fatal(err)
	}
	return &network{
		a: &site{hostA, netip.MustParseAddr("192.168.6.1"), netip.MustParseAddr("172.56.1.101")},
		b: &site{hostB, netip.MustParseAddr("192.168.6.2"), netip.MustParseAddr("172.56.2.101")},
	}
}
