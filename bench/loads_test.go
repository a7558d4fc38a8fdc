package bench

import (
	"slices"
	"testing"
	"time"
)

// load is a kind of traffic, which comes in pieces of a fixed size.
type load struct {
	name string
	size int // of a piece: bytes of streams, round trips, or microseconds of each try of a search
	// open makes the sockets of traffic from one site to another, which close with
	// the test.
	open opener
}

type opener func(tb testing.TB, from, to *site) move

// loads are what BenchmarkTunnel puts on each peer.
var loads = []load{
	{"tcp1", 64 << 20, streams(1, "cubic")},
	{"tcp4", 64 << 20, streams(4, "cubic")},
	{"tcp32", 64 << 20, streams(32, "cubic")},
	{"bbr1", 64 << 20, streams(1, "bbr")}, // paces, and so sends few packets at once
	{"udp1400", 300_000, paced(1400)},
	{"udp64", 300_000, paced(64)},
	{"pingpong64", 2000, pingPong(64)},
	{"ping", 200, ping},
}

// move moves one piece of a load. It is an error that less than all of it, or of
// datagrams none, has arrived by the deadline.
type move func(size int, deadline time.Time) (tally, error)

// tally is what came of one or more pieces. A load leaves at zero what it has
// nothing to say about.
type tally struct {
	bytes         int             // that arrived, of payload
	rtts          []time.Duration // of round trips
	rates, floods []float64       // datagrams a second: without loss, and that arrived of as many as possible
}

func (t *tally) add(more tally) {
	t.bytes += more.bytes
	t.rtts = append(t.rtts, more.rtts...)
	t.rates = append(t.rates, more.rates...)
	t.floods = append(t.floods, more.floods...)
}

// report replaces the meaningless time of a piece by what the tally says. used is
// what it took.
func (t *tally) report(b *testing.B, used usage) {
	b.ReportMetric(0, "ns/op")
	if t.bytes > 0 {
		gigabytes := float64(t.bytes) / 1e9
		b.ReportMetric(8*gigabytes/b.Elapsed().Seconds(), "Gbit/s")
		b.ReportMetric(used.machine.Seconds()/gigabytes, "machine-s/GB")
		if used.processes > 0 {
			b.ReportMetric(used.processes.Seconds()/gigabytes, "cpu-s/GB")
		}
	}
	if len(t.rtts) > 0 {
		slices.Sort(t.rtts)
		b.ReportMetric(microseconds(percentile(t.rtts, 50)), "p50-µs")
		b.ReportMetric(microseconds(percentile(t.rtts, 99)), "p99-µs")
		if used.processes > 0 {
			b.ReportMetric(microseconds(used.processes)/float64(len(t.rtts)), "cpu-µs/trip")
		}
	}
	if len(t.rates) > 0 {
		b.ReportMetric(mean(t.rates), "pps")
		b.ReportMetric(mean(t.floods), "flood-pps")
	}
	if used.memory > 0 {
		b.ReportMetric(float64(used.memory)/(1<<20), "rss-MiB")
	}
}

func mean(values []float64) (sum float64) {
	for _, v := range values {
		sum += v / float64(len(values))
	}
	return sum
}

// percentile returns the smallest of the sorted values that p percent of them do
// not exceed; p is 1 … 100.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
