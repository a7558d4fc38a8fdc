package underlay_test

import (
	"net/netip"
	"testing"
	"time"

	"goipip/internal/underlay"
)

// T7 and O6: with a device, the tunnel remembers of a path what Linux would
// (__ip_rt_update_pmtu in net/ipv4/route.c).
func TestO6_T7_LikeAnException(t *testing.T) {
	const minimum, expires = 552, 600 * time.Second
	path := underlay.Path{MTU: 1500, Device: 2, Gateway: netip.MustParseAddr("192.168.6.1")}
	otherDevice, otherGateway, onLink, locked, short := path, path, path, path, path
	otherDevice.Device = 3
	otherGateway.Gateway = netip.MustParseAddr("192.168.6.2")
	onLink.Gateway = netip.Addr{}
	locked.Locked = true
	short.MTU = 1300
	type report struct {
		at   time.Duration
		mtu  int
		path underlay.Path
	}
	for _, tt := range []struct {
		name    string
		reports []report
		at      time.Duration
		path    underlay.Path
		want    int
		locked  bool
	}{
		{"nothing", nil, 0, path, 1500, false},
		{"one", []report{{0, 1400, path}}, 0, path, 1400, false},
		{"as long as it lasts", []report{{0, 1400, path}}, expires - 1, path, 1400, false},
		{"no longer", []report{{0, 1400, path}}, expires, path, 1500, false},
		{"less", []report{{0, 1400, path}, {1, 600, path}}, 1, path, 600, false},
		{"more", []report{{0, 1400, path}, {1, 1450, path}}, 1, path, 1400, false},
		{"more, after its time", []report{{0, 1400, path}, {expires, 1450, path}}, expires, path, 1450, false},
		{"more than the route says", []report{{0, 1400, short}}, 0, path, 1500, false},
		{"the same, early: it ends as before", []report{{0, 1400, path}, {expires/2 - 1, 1400, path}}, expires, path, 1500, false},
		{"the same, late: it lasts", []report{{0, 1400, path}, {expires / 2, 1400, path}}, expires + expires/2 - 1, path, 1400, false},
		{"less lasts", []report{{0, 1400, path}, {1, 1399, path}}, expires, path, 1399, false},
		{"the minimum", []report{{0, minimum, path}}, 0, path, minimum, false},
		{"below the minimum", []report{{0, minimum - 1, path}}, 0, path, minimum, true},
		{"no MTU at all", []report{{0, 0, path}}, 0, path, minimum, true},
		{"below the minimum, of a shorter path", []report{{0, 300, underlay.Path{MTU: 500, Device: 2}}}, 0, underlay.Path{MTU: 1500, Device: 2}, 500, true},
		{"then nothing counts", []report{{0, 300, path}, {1, 540, path}, {2, 200, path}}, 2, path, minimum, true},
		{"until it ends", []report{{0, 300, path}, {expires, 1400, path}}, expires, path, 1400, false},
		{"a route that is locked", []report{{0, 1400, locked}}, 0, path, 1500, false},
		{"of another device", []report{{0, 1400, path}}, 0, otherDevice, 1500, false},
		{"of another gateway", []report{{0, 1400, path}}, 0, otherGateway, 1500, false},
		{"of no gateway", []report{{0, 1400, path}}, 0, onLink, 1500, false},
		{"more, by another way", []report{{0, 1400, path}, {1, 1450, otherDevice}}, 1, otherDevice, 1450, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			var r underlay.Reported
			for _, report := range tt.reports {
				r.Report(report.mtu, report.path, minimum, expires, start.Add(report.at))
			}
			if mtu, locked := r.Limit(tt.path, start.Add(tt.at)); mtu != tt.want || locked != tt.locked {
				t.Errorf("the MTU is %d, locked %v, want %d, %v", mtu, locked, tt.want, tt.locked)
			}
		})
	}
}
