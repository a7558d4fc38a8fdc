//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/logqueue"
	"goipip/internal/tunnel"
)

// runTunnel is goipip in the foreground.
func (o *options) runTunnel(ctx context.Context) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	if err := needTunnelDescriptors(cfg, cmp.Or(o.workers, cfg.Queues)); err != nil {
		return err
	}
	q := logqueue.New(o.logHandler(), logSize)
	defer q.Close(flushTimeout)
	return o.runOne(ctx, cfg, q.Handler())
}

// runOne runs a daemon with one tunnel to its end.
func (o *options) runOne(ctx context.Context, cfg tunnel.Config, log slog.Handler) error {
	signals := notify()
	s, err := o.serve(control.Process{Role: control.RoleForeground, Workers: cmp.Or(o.workers, cfg.Queues)}, log)
	if err != nil {
		return err
	}
	m := openManager(s.log)
	defer func() {
		m.stopping()
		s.close(whyDone(ctx))
	}()
	name, err := s.Start(config.Tunnel{Config: cfg})
	if err != nil {
		return err
	}
	s.started()
	m.ready(s.Daemon)
	go answer(signals, m.beats, s, func() {
		m.reloading()
		s.log.Info("SIGHUP ignored: there is no configuration file", "tunnel", name)
		m.reloaded(s.Daemon)
	})
	if s.Wait(ctx) != nil {
		return statusError(exitError) // the log has the reason
	}
	return nil
}

// notify returns the signals that do not end the process. They are never stopped, since
// each would end it then.
func notify() <-chan os.Signal {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	return signals
}

// answer answers signals: SIGUSR1 asks for the counters; SIGHUP asks a daemon to read its
// settings again, or tells that the terminal was closed. beats are a manager's.
func answer(signals <-chan os.Signal, beats <-chan struct{}, s *served, hangUp func()) {
	for {
		select {
		case <-beats:
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				hangUp()
			} else {
				s.logCounters()
			}
		}
	}
}

// whyDone is why tunnels end with ctx, for the log.
func whyDone(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, errNamespaceDeleted) {
		return cause
	}
	return errors.New("signal")
}
