//go:build linux

package main

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"goipip/internal/daemon"
	"goipip/internal/daemon/control"
	"goipip/internal/logqueue"
	"goipip/internal/metrics"
)

// answerTimeout bounds the wait for clients at the end of a daemon.
const answerTimeout = 500 * time.Millisecond

// served is a daemon that clients can reach by a control socket.
type served struct {
	*daemon.Daemon
	log      *slog.Logger
	asked    *slog.Logger // for what somebody asks for, without the limit on repeats
	limiter  *logqueue.Limiter
	server   *control.Server
	listener *control.Listener // nil if there is none
	metrics  *metrics.Server   // nil if they are off
}

// serve opens a daemon without tunnels, whose log goes to h and to the clients that follow
// it. Only one daemon of a network namespace takes further tunnels: the error is
// control.ErrRuns if there is one. Another reason why there is no control socket is logged.
func (o *options) serve(p control.Process, h slog.Handler) (*served, error) {
	events := control.NewEvents()
	h = slog.NewMultiHandler(h, events.Handler())
	limiter := logqueue.NewLimiter(h)
	s := &served{log: slog.New(limiter.Handler()), asked: slog.New(h), limiter: limiter}
	var err error
	if p.Role == control.RoleForeground || p.Role == control.RoleBeside {
		if s.listener, err = control.ListenBeside(o.control); err != nil {
			s.log.Debug("goipip show will not show this process", "err", err)
		}
	} else {
		s.listener, err = control.Listen(o.control)
		if errors.Is(err, control.ErrRuns) || err != nil && p.Role == control.RoleBackground {
			return nil, err
		}
		if err != nil {
			s.log.Warn("no control socket: goipip tunnel and goipip show will not find this daemon", "err", err)
		}
	}
	if o.metrics != "" {
		if s.metrics, err = metrics.Listen(o.metrics, s.log); err != nil {
			s.stopServing()
			s.release()
			return nil, err
		}
	}
	p.PID, p.Version, p.Started = os.Getpid(), version(), time.Now()
	if s.Daemon, err = daemon.Open(p, s.log); err != nil {
		s.stopServing()
		s.release()
		return nil, err
	}
	s.server = control.NewServer(s.Daemon, events)
	if s.listener != nil {
		go func() { _ = s.server.Serve(s.listener) }() // ends with the listener
	}
	if s.metrics != nil {
		s.metrics.Serve(s.Daemon)
	}
	return s, nil
}

// started tells that the tunnels have been started that the daemon was started for.
func (s *served) started() {
	if s.metrics != nil {
		s.metrics.Started()
	}
}

// logCounters logs the counters of all tunnels, as often as somebody asks for them.
func (s *served) logCounters() { s.LogCounters(s.asked) }

// stopServing refuses new clients, and answers those that wait for an answer.
func (s *served) stopServing() {
	if s.metrics != nil {
		s.metrics.Close()
	}
	if s.listener != nil {
		s.listener.Close()
	}
	if s.server != nil {
		s.server.Close(answerTimeout)
	}
}

func (s *served) release() {
	if s.listener != nil {
		s.listener.Release()
	}
}

// close ends the daemon, and its tunnels for the reason why.
func (s *served) close(why error) {
	s.stopServing()
	s.Close(why)
	s.release()
	s.limiter.Close()
}
