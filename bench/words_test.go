package bench

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"goipip/internal/netlab/labtest"
)

// BenchmarkWords measures goipip tunnel as a user waits for it: the first add, which starts the
// daemon, adds 2 to 200, and show of 1000 tunnels.
func BenchmarkWords(b *testing.B) {
	labtest.Need(b, "root", "tun", "ip")
	host, err := labtest.New(b).Host("host")
	if err != nil {
		b.Fatal(err)
	}
	words := func(words ...string) time.Duration {
		cmd := exec.Command(goipip(b), append([]string{"tunnel"}, words...)...)
		cmd.Env = os.Environ()
		var took time.Duration
		if err := host.Do(func() error {
			begin := time.Now()
			out, err := cmd.CombinedOutput()
			took = time.Since(begin)
			if err != nil {
				return fmt.Errorf("goipip tunnel %q: %w: %s", words, err, out)
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		return took
	}
	add := func(i int) time.Duration {
		outer, _, _ := ends(i)
		return words("add", fmt.Sprint("t", i), "mode", "ipip", "local", "10.200.0.1", "remote", outer.String())
	}
	milliseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	for range b.N {
		first := add(0)
		last := time.Duration(0)
		for i := 1; i < 200; i++ {
			last += add(i)
		}
		for i := 200; i < 1000; i++ {
			add(i)
		}
		words("show")
		b.ReportMetric(milliseconds(first), "ms/first-add")
		b.ReportMetric(milliseconds(last)/199, "ms/add")
		b.ReportMetric(milliseconds(words("show")), "ms/show")
		b.ReportMetric(0, "ns/op")
		for i := range 1000 {
			words("del", fmt.Sprint("t", i))
		}
	}
}
