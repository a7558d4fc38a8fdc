// Package metrics serves what Prometheus scrapes: the metrics of a daemon and its tunnels, and
// whether they work. Nothing is counted here: a scrape reads what the daemon has counted.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"goipip/internal/daemon/control"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Limits of what clients may take. A Prometheus server keeps one connection.
const (
	maxConnections = 16
	maxScrapes     = 4 // at once
	maxHeader      = 16 << 10

	requestTimeout = 5 * time.Second
	answerTimeout  = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	endTimeout     = 500 * time.Millisecond
)

// Source is the daemon that metrics are of. Any goroutine may call its methods, which wait for
// no change of a tunnel.
type Source interface {
	LastStatus() control.Status
	// Health returns an error if no packets can pass in this process any more.
	Health() error
}

// Server serves /metrics, /healthz and /readyz by HTTP.
type Server struct {
	log      *slog.Logger
	listener net.Listener
	http     *http.Server
	started  atomic.Bool
}

// Listen listens at an address and a port, in the network namespace of the calling thread.
// Clients wait until Serve, and are refused after Close.
func Listen(at string, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, fmt.Errorf("metrics at %s: %w", at, withCure(err))
	}
	return &Server{log: log, listener: netutil.LimitListener(l, maxConnections)}, nil
}

// withCure returns why a listener cannot be had, and what to do about it.
func withCure(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch errno {
	case syscall.EADDRINUSE:
		return fmt.Errorf("%w: choose another port, or end the program that has this one (ss -ltnp shows it)", errno)
	case syscall.EADDRNOTAVAIL:
		return fmt.Errorf("%w: choose an address of this host (ip address)", errno)
	case syscall.EACCES:
		return fmt.Errorf("%w: choose a port from 1024 on", errno)
	}
	return errno
}

// Serve answers clients in the background, about source. It is called once.
func (s *Server) Serve(source Source) {
	// Clients that go away are no news.
	errorLog := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	s.http = &http.Server{
		Handler:        s.handler(source, errorLog),
		ReadTimeout:    requestTimeout,
		WriteTimeout:   answerTimeout,
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       errorLog,
	}
	s.log.Info("metrics are served", "at", "http://"+s.listener.Addr().String()+"/metrics")
	go func() { _ = s.http.Serve(s.listener) }() // ends with the listener
}

// Started tells that the tunnels have been started that the process was started for: before
// that it is not ready.
func (s *Server) Started() { s.started.Store(true) }

// Close refuses new clients, and waits half a second for answers that are under way.
func (s *Server) Close() {
	s.listener.Close()
	if s.http == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
}

func (s *Server) handler(source Source, errorLog *log.Logger) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer{source, r}, promhttp.HandlerOpts{
		ErrorLog:            errorLog,
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, "alive", source.Health())
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, "ready", s.ready(source))
	})
	return mux
}

// ready returns an error that names the tunnels which should work and do not.
func (s *Server) ready(source Source) error {
	if !s.started.Load() {
		return errors.New("starting")
	}
	status := source.LastStatus()
	var faults []string
	for _, name := range status.Missing {
		faults = append(faults, name+": does not run: the log says why")
	}
	for i := range status.Tunnels {
		t := &status.Tunnels[i]
		asIs := t.Config.Down && !t.Up // nobody has set the link up so far
		if why := trouble(t); why != "" && !asIs {
			faults = append(faults, t.Name+": "+why)
		}
	}
	if faults == nil {
		return nil
	}
	return errors.New(strings.Join(faults, "\n"))
}

// answer says good, or with status 503 what is wrong.
func answer(w http.ResponseWriter, good string, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		good = err.Error()
	}
	_, _ = io.WriteString(w, good+"\n") // for a client that waits
}
