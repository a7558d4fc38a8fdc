package metrics

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"goipip/internal/daemon/control"
	"goipip/internal/tunnel"
)

type fake struct{ s control.Status }

func (f fake) LastStatus() control.Status { return f.s }
func (f fake) Health() error              { return nil }

func BenchmarkGather(b *testing.B) {
	f := fake{}
	for i := range 1000 {
		f.s.Tunnels = append(f.s.Tunnels, control.TunnelStatus{Name: fmt.Sprint("tun", i), Config: tunnel.Config{Name: "x", Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.1")}, Underlay: control.Underlay{PathMTU: 1500}})
	}
	for _, enc := range []string{"", "gzip"} {
		b.Run("enc="+enc, func(b *testing.B) {
			s := &Server{log: slog.New(slog.DiscardHandler)}
			h := s.handler(f)
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest("GET", "/metrics", nil)
				r.Header.Set("Accept-Encoding", enc)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
		})
	}
}
