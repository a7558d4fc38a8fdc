//go:build linux

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"goipip/internal/engine"
	"goipip/internal/logqueue"
	"goipip/internal/stats"
)

// runTunnel is goipip in the foreground.
func (o *options) runTunnel(ctx context.Context) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	if err := needTunnelDescriptors(cfg.Queues); err != nil {
		return err
	}
	q := logqueue.New(o.logHandler(), logSize)
	defer q.Close(flushTimeout)
	return runTunnel(ctx, cfg, slog.New(q.Handler()), func(*slog.Logger) {})
}

// runTunnel carries a tunnel from its start to its end. When the link is there it
// calls up, with the logger for lines about the tunnel.
func runTunnel(ctx context.Context, cfg engine.Config, log *slog.Logger, up func(*slog.Logger)) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP) // never stopped: each would end the process
	t, err := engine.Open(cfg, log)
	if err != nil {
		return err
	}
	log = log.With("tunnel", t.Name())
	log.Info("tunnel is up", "local", cfg.Local, "remote", cfg.Remote, "mtu", t.MTU())
	go answer(signals, t, log)
	up(log)

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

// answer answers the signals that do not end the tunnel: SIGUSR1 asks for the
// counters; SIGHUP asks a daemon to read its settings again, or tells that the
// terminal was closed.
func answer(signals <-chan os.Signal, t *engine.Tunnel, log *slog.Logger) {
	for sig := range signals {
		if sig == syscall.SIGHUP {
			log.Info("SIGHUP ignored: there is no configuration file")
			continue
		}
		s := t.Stats()
		log.Info("counters", "tx", counters(s.TX), "rx", counters(s.RX), "link", linkErrors(s.Link()))
	}
}

// counters shows one direction, drops in the order of stats.Reason.
type counters stats.Direction

func (c counters) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Uint64("packets", c.Packets), slog.Uint64("bytes", c.Bytes)}
	for reason, n := range c.Drops.All() {
		attrs = append(attrs, slog.Uint64("dropped_"+reason.String(), n))
	}
	return slog.GroupValue(attrs...)
}

// linkErrors shows what the kernel's tunnel would count as errors on the link, under
// the names of ip -s -s link show.
type linkErrors stats.LinkStats

func (l linkErrors) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("rx_errors", l.RXErrors), slog.Uint64("rx_length_errors", l.RXLengthErrors),
		slog.Uint64("rx_frame_errors", l.RXFrameErrors), slog.Uint64("rx_dropped", l.RXDropped),
		slog.Uint64("tx_errors", l.TXErrors), slog.Uint64("tx_carrier_errors", l.TXCarrierErrors),
		slog.Uint64("collisions", l.Collisions), slog.Uint64("tx_dropped", l.TXDropped),
	)
}
