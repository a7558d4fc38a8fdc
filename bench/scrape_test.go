package bench

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"goipip/internal/netlab"
)

// metricsAt is where a process with many tunnels serves its metrics.
const metricsAt = "127.0.0.1:9747"

// BenchmarkScrape scrapes the metrics of a process with some number of tunnels, and has 1000
// datagrams a second pass one of them, first without scrapes, then beside one after the other.
func BenchmarkScrape(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("tunnels=%d", n), func(b *testing.B) {
			for b.Loop() {
				m := startMany(b, n, "--metrics", metricsAt)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(m.status(b, "VmRSS:"))/1024, "rss-before-MiB")
				client := scraper(m.a[0].host)
				scrape(b, client, n)
				quiet := probe(b, m.a[1], m.b[1])
				time.Sleep(time.Second)
				b.ReportMetric(quiet().gap.Seconds()*1000, "gap-before-ms")
				before, err := cpuTime(m.run.Pid())
				if err != nil {
					b.Fatal(err)
				}
				const scrapes = 20
				var took []time.Duration
				size := 0
				busy := probe(b, m.a[1], m.b[1])
				for range scrapes {
					var t time.Duration
					t, size = scrape(b, client, n)
					took = append(took, t)
				}
				r := busy()
				after, err := cpuTime(m.run.Pid())
				if err != nil {
					b.Fatal(err)
				}
				slices.Sort(took)
				b.ReportMetric(percentile(took, 50).Seconds()*1000, "scrape-ms")
				b.ReportMetric(percentile(took, 100).Seconds()*1000, "slowest-ms")
				b.ReportMetric((after-before).Seconds()*1000/scrapes, "cpu-ms/scrape")
				b.ReportMetric(float64(size)/1024, "KiB")
				b.ReportMetric(r.gap.Seconds()*1000, "gap-ms")
				b.ReportMetric(float64(r.lost), "lost")
				b.ReportMetric(float64(m.status(b, "VmRSS:"))/1024, "rss-MiB")
			}
		})
	}
}

// scraper returns a client on a host, which keeps its connection.
func scraper(h *netlab.Host) *http.Client {
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = h.Do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}
}

// scrape reads the metrics of a process with n tunnels, and returns how long that took and their
// size in bytes.
func scrape(tb testing.TB, client *http.Client, n int) (took time.Duration, size int) {
	tb.Helper()
	text := bytes.NewBuffer(make([]byte, 0, 4<<20))
	begin := time.Now()
	resp, err := client.Get("http://" + metricsAt + "/metrics")
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := text.ReadFrom(resp.Body); err != nil {
		tb.Fatal(err)
	}
	took = time.Since(begin)
	if got := bytes.Count(text.Bytes(), []byte("\ngoipip_tunnel_up{")); resp.StatusCode != http.StatusOK || got != n {
		tb.Fatalf("%s: %d tunnels, want %d", resp.Status, got, n)
	}
	return took, text.Len()
}
