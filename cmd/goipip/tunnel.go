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
		log.Info("tunnel is down", "why", why, "tx", t.Stats().TX, "rx", t.Stats().RX)
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
		log.Info("counters", t.Stats().Attrs()...)
	}
}
