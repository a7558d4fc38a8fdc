package bench

import (
	"context"
	"flag"
	"log/slog"
	"net/netip"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/tunnel"
)

// inProcess is goipip with both ends in this process, where -cpuprofile sees
// them. What it reports is no comparison: the load shares its runtime.
var inProcess = peer{"inprocess", nil, both(startEngine)}

// BenchmarkEngine puts each load on goipip for a profile.
func BenchmarkEngine(b *testing.B) {
	if flag.Lookup("test.cpuprofile").Value.String() == "" {
		b.Skip("measures nothing that BenchmarkTunnel does not: it is for -cpuprofile")
	}
	for _, l := range loads {
		b.Run("load="+l.name, func(b *testing.B) { measure(b, l, inProcess) })
	}
}

// startEngine runs an engine until the test ends.
func startEngine(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	cfg := tunnel.Config{
		Name:    link,
		Local:   near.outer,
		Remote:  far.outer,
		Address: netip.PrefixFrom(near.inner, near.inner.BitLen()),
		Peer:    far.inner,
		Queues:  1,
	}
	if err := cfg.Validate(); err != nil {
		tb.Fatal(err)
	}
	var running *tunnel.Tunnel
	if err := near.host.Do(func() (err error) {
		running, err = tunnel.Open(cfg, slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- running.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	})
	return nil
}
