package bench

import (
	"slices"
	"testing"
	"time"
)

// load is a kind of traffic, which comes in pieces of a fixed size.
type load struct {
	name string
	size int // of a piece: bytes of a stream, datagrams, or round trips
	// open makes the sockets of traffic from one site to another, which close with
	// the test.
	open opener
}

type opener func(tb testing.TB, from, to *site) move

// loads are what BenchmarkTunnel puts on each peer.
var loads = []load{
	{"tcp1", 64 << 20, streams(1, "cubic")},
	{"tcp4", 64 << 20, streams(4, "cubic")},
	{"bbr1", 64 << 20, streams(1, "bbr")}, // paces, and so sends few packets at once
	{"udp1400", 50_000, flood(1400)},
	{"pingpong64", 2000, pingPong(64)},
}

// move moves one piece of a load. It is an error that less than all of it, or of
// datagrams none, has arrived by the deadline.
type move func(size int, deadline time.Time) (tally, error)

// tally is what came of one or more pieces. A load leaves at zero what it has
// nothing to say about.
type tally struct {
	bytes          int             // that arrived, of payload
	sent, received int             // datagrams
	rtts           []time.Duration // of round trips
}

func (t *tally) add(more tally) {
	t.bytes += more.bytes
	t.sent += more.sent
	t.received += more.received
	t.rtts = append(t.rtts, more.rtts...)
}

// report replaces the meaningless time of a piece by what the tally says. cpu is
// what the peer's processes used meanwhile, 0 where there are none.
func (t *tally) report(b *testing.B, cpu time.Duration) {
	seconds := b.Elapsed().Seconds()
	b.ReportMetric(0, "ns/op")
	if t.bytes > 0 {
		b.ReportMetric(float64(t.bytes)*8/1e9/seconds, "Gbit/s")
	}
	if t.bytes > 0 && cpu > 0 {
		b.ReportMetric(cpu.Seconds()/(float64(t.bytes)/1e9), "cpu-s/GB")
	}
	if t.sent > 0 {
		b.ReportMetric(float64(t.received)/seconds, "packets/s")
		b.ReportMetric(100*float64(t.sent-t.received)/float64(t.sent), "loss-%")
	}
	if len(t.rtts) > 0 {
		slices.Sort(t.rtts)
		b.ReportMetric(microseconds(percentile(t.rtts, 50)), "p50-µs")
		b.ReportMetric(microseconds(percentile(t.rtts, 99)), "p99-µs")
	}
	if len(t.rtts) > 0 && cpu > 0 {
		b.ReportMetric(microseconds(cpu)/float64(len(t.rtts)), "cpu-µs/trip")
	}
}

// percentile returns the smallest of the sorted values that p percent of them do
// not exceed; p is 1 … 100.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
