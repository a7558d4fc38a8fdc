package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
)

// metricsAt is where a process with many tunnels serves its metrics.
const metricsAt = "127.0.0.1:9747"

// BenchmarkScrape scrapes the metrics of a process with some number of tunnels, and has 1000 datagrams a second pass one of them, without scrapes and beside
// one after the other.
func BenchmarkScrape(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("tunnels=%d", n), func(b *testing.B) {
			for b.Loop() {
				m := startMany(b, n, "--metrics", metricsAt)
				client := scraper(m.a[0].host)
				for range 3 {
					scrape(b, client, n)
				}
				quiet := probe(b, m.a[1], m.b[1])
				time.Sleep(time.Second)
				still := quiet()
				busy := probe(b, m.a[1], m.b[1])
				var took []time.Duration
				size := 0
				for range 20 {
					begin := time.Now()
					size = scrape(b, client, n)
					took = append(took, time.Since(begin))
				}
				r := busy()
				slices.Sort(took)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(percentile(took, 50).Seconds()*1000, "scrape-ms")
				b.ReportMetric(percentile(took, 100).Seconds()*1000, "slowest-ms")
				b.ReportMetric(float64(size)/1024, "KiB")
				b.ReportMetric(r.gap.Seconds()*1000, "gap-ms")
				b.ReportMetric(still.gap.Seconds()*1000, "gap-before-ms")
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

// scrape reads the metrics of a process with n tunnels, and returns their size in bytes.
func scrape(tb testing.TB, client *http.Client, n int) (size int) {
	tb.Helper()
	resp, err := client.Get("http://" + metricsAt + "/metrics")
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	if got := strings.Count(string(text), "\ngoipip_tunnel_up{"); resp.StatusCode != http.StatusOK || got != n {
		tb.Fatalf("%s: %d tunnels, want %d", resp.Status, got, n)
	}
	return len(text)
}
