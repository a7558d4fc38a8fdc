package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"goipip/internal/engine"
)

// runTunnel is goipip in the foreground.
func (o *options) runTunnel(ctx context.Context) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	return runTunnel(ctx, cfg, o.logger(), func() {})
}

// runTunnel carries a tunnel from its start to its end. It calls up when the
// link is there.
func runTunnel(ctx context.Context, cfg engine.Config, log *slog.Logger, up func()) error {
	t, err := engine.Open(cfg, log)
	if err != nil {
		return err
	}
	log = log.With("name", t.Name())
	log.Info("tunnel is up", "local", cfg.Local, "remote", cfg.Remote, "mtu", t.MTU())
	stop := logCountersOn(syscall.SIGUSR1, t, log)
	defer stop()
	up()

	why := "signal"
	if err = t.Run(ctx); errors.Is(err, engine.ErrDeleted) {
		why, err = "link deleted", nil
	} else if cause := context.Cause(ctx); errors.Is(cause, errNamespaceDeleted) {
		why = cause.Error()
	}
	if err == nil {
		log.Info("tunnel is down", "why", why, "tx", counters(t.Stats().TX), "rx", counters(t.Stats().RX))
	}
	return err
}

// logCountersOn logs the counters whenever the process gets sig.
func logCountersOn(sig os.Signal, t *engine.Tunnel, log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, sig)
	go func() {
		for range signals {
			s := t.Stats()
			log.Info("counters", "tx", counters(s.TX), "rx", counters(s.RX), "link", linkErrors(s.Link()))
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// counters shows one direction, drops in the order of their names.
type counters engine.Direction

func (c counters) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Uint64("packets", c.Packets), slog.Uint64("bytes", c.Bytes)}
	for _, reason := range slices.Sorted(maps.Keys(c.Drops)) {
		attrs = append(attrs, slog.Uint64("dropped_"+reason, c.Drops[reason]))
	}
	return slog.GroupValue(attrs...)
}

// linkErrors shows what the kernel's tunnel would count as errors on the link, under
// the names of ip -s -s link show.
type linkErrors engine.LinkStats

func (l linkErrors) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("rx_errors", l.RXErrors), slog.Uint64("rx_length_errors", l.RXLengthErrors),
		slog.Uint64("rx_frame_errors", l.RXFrameErrors), slog.Uint64("rx_dropped", l.RXDropped),
		slog.Uint64("tx_errors", l.TXErrors), slog.Uint64("tx_carrier_errors", l.TXCarrierErrors),
		slog.Uint64("collisions", l.Collisions), slog.Uint64("tx_dropped", l.TXDropped),
	)
}
