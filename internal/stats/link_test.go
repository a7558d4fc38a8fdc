package stats_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/stats"
)

// T13, R6: what each reason is among the counters of Linux's link. Errors are counted
// among all errors, too, and no packet twice.
func TestT13_R6_LinkStats(t *testing.T) {
	tests := []struct {
		what string
		s    stats.Snapshot
		want stats.LinkStats
	}{
		{"nothing", stats.Snapshot{}, stats.LinkStats{}},
		{
			"passed",
			stats.Snapshot{TX: stats.Direction{Packets: 1, Bytes: 20}, RX: stats.Direction{Packets: 3, Bytes: 400}},
			stats.LinkStats{TXPackets: 1, TXBytes: 20, RXPackets: 3, RXBytes: 400},
		},
		{"no route", sent(stats.NoRoute), stats.LinkStats{TXErrors: 2, TXCarrierErrors: 2}},
		{"loop", sent(stats.Loop), stats.LinkStats{TXErrors: 2, Collisions: 2}},
		{
			"other errors in TX",
			sent(stats.NotIPv4, stats.Malformed, stats.TooDeep, stats.TooBig),
			stats.LinkStats{TXErrors: 8},
		},
		{
			"dropped in TX",
			sent(stats.TTLExpired, stats.Congested, stats.Filtered, stats.SendError, stats.QueueFull),
			stats.LinkStats{TXDropped: 10},
		},
		{"length", received(stats.Malformed), stats.LinkStats{RXErrors: 3, RXLengthErrors: 3}},
		{"ECN", received(stats.BadECN), stats.LinkStats{RXErrors: 3, RXFrameErrors: 3}},
		{
			"dropped in RX",
			received(stats.TTLExpired, stats.WrongPeer, stats.Martian, stats.LinkDown, stats.LinkRefused, stats.RcvbufFull),
			stats.LinkStats{RXDropped: 18},
		},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, tt.s.Link()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.what, diff)
		}
	}
}

// Each packet that was dropped is in one of Linux's counters, whatever the reason.
func TestG5_LinkStatsHaveAll(t *testing.T) {
	for r := range stats.NumReasons {
		if !r.Dropped() {
			continue
		}
		if r.TX() != "" {
			if l := sent(r).Link(); l.TXErrors+l.TXDropped != 2 || l.RXErrors+l.RXDropped != 0 {
				t.Errorf("2 packets were dropped in TX as %v: %+v", r, l)
			}
		}
		if r.RX() != "" {
			if l := received(r).Link(); l.RXErrors+l.RXDropped != 3 || l.TXErrors+l.TXDropped != 0 {
				t.Errorf("3 packets were dropped in RX as %v: %+v", r, l)
			}
		}
	}
}

// sent is of two packets for each reason.
func sent(reasons ...stats.Reason) (s stats.Snapshot) {
	for _, r := range reasons {
		s.TX.Drops[r] = 2
	}
	return s
}

// received is of three packets for each reason.
func received(reasons ...stats.Reason) (s stats.Snapshot) {
	for _, r := range reasons {
		s.RX.Drops[r] = 3
	}
	return s
}
