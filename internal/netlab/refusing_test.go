package netlab_test

import (
	"os/exec"
	"strings"
	"testing"

	"goipip/internal/netlab"
)

// A kernel that does not take merged packets any more is noticed, and told of once: they
// are delivered one by one, those that it refused too.
func TestUnmerged(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"", "--queues 4", "--tx raw"} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			l.end01.start(t, strings.Fields(options)...)
			const parts = 3 // of two packets with a header before them
			tun02 := l.end02.startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) { return l.ns02.StartUnmerged(cmd, parts) },
				strings.Fields(options)...)
			tun02.hasNoComplaint(t)
			l.transfer(t, transferLen)
			tun02.out.waitFor(t, "refuses merged packets")
			l.carriesTCP(t)
			l.carriesUDP(t)
			l.pingBothWays(t)
			if log := tun02.out.String(); strings.Count(log, "level=WARN") != 1 || strings.Contains(log, "level=ERROR") {
				t.Errorf("the tunnel complains:\n%s", log)
			}
			link, err := l.ns02.Netlink().LinkByName("tun02")
			if err != nil {
				t.Fatal(err)
			}
			if s := link.Attrs().Statistics; s.RxErrors+s.RxDropped > 0 {
				t.Errorf("the link has lost packets: %+v", s)
			}
		})
	}
}
