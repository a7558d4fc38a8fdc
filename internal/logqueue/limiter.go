package logqueue

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A Limiter passes on Burst records with the same message about the same tunnel within an Interval that begins with the
// first of them. Those that follow are suppressed, and the end of the interval says how many.
const (
	Burst    = 10
	Interval = 10 * time.Second
)

// tunnelKey is the attribute by which the same message is told of several tunnels.
const tunnelKey = "tunnel"

// maxRuns is how many runs are kept before those whose interval is over are dropped.
const maxRuns = 1024

// Limiter bounds how often a log repeats itself. The caller closes it before the log that it writes to.
type Limiter struct {
	inner slog.Handler

	mu     sync.Mutex
	runs   map[repeated]*run
	closed bool
}

// repeated is what makes two records the same.
type repeated struct{ tunnel, message string }

// run is the records with the same key within an Interval.
type run struct {
	begun      time.Time
	passed     int
	suppressed int
	level      slog.Level  // of the last one suppressed
	end        *time.Timer // nil before one is suppressed
}

// NewLimiter returns a Limiter in front of inner, whose Handle must not block.
func NewLimiter(inner slog.Handler) *Limiter {
	return &Limiter{inner: inner, runs: map[repeated]*run{}}
}

// Handler returns the loggers' end. Several goroutines may use it at once.
func (l *Limiter) Handler() slog.Handler { return limited{limiter: l, inner: l.inner} }

// Close says what has been suppressed until now, and suppresses nothing any more.
func (l *Limiter) Close() {
	l.mu.Lock()
	runs := l.runs
	l.runs, l.closed = nil, true
	l.mu.Unlock()
	for what, r := range runs {
		if r.end != nil && r.end.Stop() {
			l.tell(what, r)
		}
	}
}

// pass reports whether a record may be logged.
func (l *Limiter) pass(what repeated, level slog.Level) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return true
	}
	r := l.runs[what]
	if r == nil || r.end == nil && now.Sub(r.begun) >= Interval {
		l.sweep(now)
		r = &run{begun: now}
		l.runs[what] = r
	}
	if r.passed < Burst {
		r.passed++
		return true
	}
	r.suppressed++
	r.level = level
	if r.end == nil {
		r.end = time.AfterFunc(r.begun.Add(Interval).Sub(now), func() { l.finish(what, r) })
	}
	return false
}

// sweep drops runs that have nothing to say, if there are many. It needs mu.
func (l *Limiter) sweep(now time.Time) {
	if len(l.runs) < maxRuns {
		return
	}
	for what, r := range l.runs {
		if r.end == nil && now.Sub(r.begun) >= Interval {
			delete(l.runs, what)
		}
	}
}

// finish ends a run of which records were suppressed.
func (l *Limiter) finish(what repeated, r *run) {
	l.mu.Lock()
	delete(l.runs, what)
	l.mu.Unlock()
	l.tell(what, r)
}

// tell logs how many records of a run were suppressed. Nothing changes the run any more.
func (l *Limiter) tell(what repeated, r *run) {
	record := slog.NewRecord(time.Now(), r.level, "log lines were suppressed", 0)
	if what.tunnel != "" {
		record.AddAttrs(slog.String(tunnelKey, what.tunnel))
	}
	record.AddAttrs(slog.String("line", what.message), slog.Int("suppressed", r.suppressed))
	_ = l.inner.Handle(context.Background(), record)
}

// limited is the loggers' end of a Limiter.
type limited struct {
	limiter *Limiter
	inner   slog.Handler
	tunnel  string // by With
	grouped bool   // attributes are not the record's own any more
}

func (h limited) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

func (h limited) Handle(ctx context.Context, r slog.Record) error {
	what := repeated{h.tunnel, r.Message}
	if !h.grouped {
		r.Attrs(func(a slog.Attr) bool {
			what.tunnel = tunnelOf(a, what.tunnel)
			return true
		})
	}
	if !h.limiter.pass(what, r.Level) {
		return nil
	}
	return h.inner.Handle(ctx, r)
}

func (h limited) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if !h.grouped {
			h.tunnel = tunnelOf(a, h.tunnel)
		}
	}
	h.inner = h.inner.WithAttrs(attrs)
	return h
}

func (h limited) WithGroup(name string) slog.Handler {
	h.grouped = true
	h.inner = h.inner.WithGroup(name)
	return h
}

// tunnelOf returns the tunnel that a names, and else before.
func tunnelOf(a slog.Attr, before string) string {
	if a.Key == tunnelKey {
		return a.Value.String()
	}
	return before
}
