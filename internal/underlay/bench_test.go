package underlay_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"goipip/internal/underlay"
)

// used returns the CPU time of this process.
func used() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func BenchmarkFollow(b *testing.B) {
	for _, n := range []int{many, 10 * many} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newCrowd(b, n)
			for b.Loop() {
				c.w.Follow(underlay.Query{Local: local, Remote: remoteOf(n), NextHop: true}, &counter{}).Close()
			}
		})
	}
}

// Each iteration is 10 000 changes. What ip(8) needs for them is included in ns/op, but
// not in cpu-ms/op.
func BenchmarkRouteEvents(b *testing.B) {
	var defaults []string
	for range 5000 {
		defaults = append(defaults, "route add default dev eth0 metric 77", "route del default dev eth0 metric 77")
	}
	for _, n := range []int{many, 10 * many} {
		for name, lines := range map[string][]string{"others": routes(5000), "default": defaults} {
			b.Run(fmt.Sprint(n, " ", name), func(b *testing.B) {
				c := newCrowd(b, n)
				before := used()
				for b.Loop() {
					ip(b, c.host, lines)
				}
				b.ReportMetric(float64((used()-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// Each iteration is a second without events, with links that are all asked about, or one of
// them.
func BenchmarkIdleObserved(b *testing.B) {
	for _, n := range []int{1, many} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newCrowd(b, 0)
			c.observe(b, many)
			for _, f := range c.followings[n:] {
				f.Close()
			}
			before := used()
			for b.Loop() {
				time.Sleep(time.Second)
			}
			b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-us/s")
		})
	}
}

// Each iteration is a second without events.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{1, many, 10 * many} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			newCrowd(b, n)
			before := used()
			for b.Loop() {
				time.Sleep(time.Second)
			}
			b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-us/s")
		})
	}
}
