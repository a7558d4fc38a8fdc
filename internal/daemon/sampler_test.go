package daemon

import (
	"testing"
	"time"

	"goipip/internal/stats"
)

// A remote end is silent after half a minute in which packets were sent to it, and some seconds of that are not enough.
func TestJudge(t *testing.T) {
	start := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		intervals string // s: something was sent, c: came, b: both, -: nothing
		want      map[int]news
	}{
		"a flow without answers": {"ssssssssssssssssssssssssssssssssssssssss", map[int]news{30: fellSilent}},
		"answered":               {"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", nil},
		"idle":                   {"s---------------------------------------", nil},
		"now and then":           {"s---------s---------s---------s---------s", map[int]news{40: fellSilent}},
		"back":                   {"sssssssssssssssssssssssssssssssssscsssss", map[int]news{30: fellSilent, 34: cameBack}},
		"answered late":          {"ssssssssssssssssssssssssssssscssssssssss", nil},
	} {
		var p sample
		for i, what := range c.intervals {
			if got := p.judge(what == 's' || what == 'b', what == 'c' || what == 'b', start.Add(time.Duration(i)*time.Second)); got != c.want[i] {
				t.Errorf("%s: after %d s: %v, want %v", name, i, got, c.want[i])
			}
		}
	}
}

// Rates are those of the last interval, whatever its length, and the last packet's time is that of its end.
func TestFlow(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	var f flow
	if !f.add(stats.Direction{Packets: 10, Bytes: 1000}, now, 0) || f.packetRate != 0 || f.last != now {
		t.Errorf("the first interval: %+v", f)
	}
	later := now.Add(2 * time.Second)
	if !f.add(stats.Direction{Packets: 30, Bytes: 5000}, later, 2*time.Second) || f.packetRate != 10 || f.bytesRate != 2000 || f.last != later {
		t.Errorf("the second: %+v", f)
	}
	if f.add(stats.Direction{Packets: 30, Bytes: 5000}, later.Add(time.Second), time.Second) || f.packetRate != 0 || f.bytesRate != 0 || f.last != later {
		t.Errorf("the third: %+v", f)
	}
	traffic := f.traffic(stats.Direction{Packets: 30, Bytes: 5000, Drops: stats.Drops{stats.TooBig: 7}})
	if traffic.Packets != 30 || traffic.Last != later || len(traffic.Drops) != 1 || traffic.Drops["too_big"] != 7 {
		t.Errorf("traffic %+v", traffic)
	}
}
