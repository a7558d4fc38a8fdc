package logqueue_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"goipip/internal/logqueue"
)

// said returns the lines of g since the last call, without what they have in common.
func (g *gate) said() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.buf.Reset()
	return strings.ReplaceAll(g.buf.String(), "level=INFO msg=", "")
}

// The same message about the same tunnel passes ten times in ten seconds, and then a line says
// how often it came. Others are not concerned.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		close(g.open)
		l := logqueue.NewLimiter(g.text(slog.LevelInfo))
		log := slog.New(l.Handler())
		tun01 := log.With("tunnel", "tun01")
		for i := range logqueue.Burst + 5 {
			tun01.Info("lost", "i", i)
			time.Sleep(time.Millisecond)
		}
		var want strings.Builder
		for i := range logqueue.Burst {
			fmt.Fprintf(&want, "lost tunnel=tun01 i=%d\n", i)
		}
		if got := g.said(); got != want.String() {
			t.Errorf("%d equal lines come to\n%swant\n%s", logqueue.Burst+5, got, &want)
		}
		log.Info("lost", "tunnel", "tun02")
		tun01.Info("found")
		log.Info("lost")
		log.WithGroup("g").Info("lost", "tunnel", "tun01")
		if got, want := g.said(), "lost tunnel=tun02\nfound tunnel=tun01\nlost\nlost g.tunnel=tun01\n"; got != want {
			t.Errorf("other lines come to\n%swant\n%s", got, want)
		}
		log.Warn("lost", "tunnel", "tun01") // the attribute counts wherever it is from
		time.Sleep(logqueue.Interval)
		synctest.Wait()
		if got, want := g.said(), "level=WARN msg=\"log lines were suppressed\" tunnel=tun01 line=lost suppressed=6\n"; got != want {
			t.Errorf("the end of the interval says\n%swant\n%s", got, want)
		}
		tun01.Info("lost")
		if got, want := g.said(), "lost tunnel=tun01\n"; got != want {
			t.Errorf("the next interval begins with %q, want %q", got, want)
		}
		l.Close()
		if got := g.said(); got != "" {
			t.Errorf("with nothing suppressed, Close says %q", got)
		}
	})
}

// A slow repeat is never suppressed.
func TestLimiter_Slow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		close(g.open)
		l := logqueue.NewLimiter(g.text(slog.LevelInfo))
		defer l.Close()
		log := slog.New(l.Handler())
		for range 10 * logqueue.Burst {
			log.Info("again")
			time.Sleep(logqueue.Interval / logqueue.Burst)
		}
		if got, want := g.said(), strings.Repeat("again\n", 10*logqueue.Burst); got != want {
			t.Errorf("the log says\n%s", got)
		}
	})
}

// Close says what was suppressed, and later lines pass.
func TestLimiter_Close(t *testing.T) {
	g := newGate()
	close(g.open)
	l := logqueue.NewLimiter(g.text(slog.LevelInfo))
	log := slog.New(l.Handler())
	for range logqueue.Burst + 1 {
		log.Info("again")
	}
	g.said()
	l.Close()
	log.Info("again")
	if got, want := g.said(), "\"log lines were suppressed\" line=again suppressed=1\nagain\n"; got != want {
		t.Errorf("the log says\n%swant\n%s", got, want)
	}
}

// However many messages there are, what is kept of them is bounded by those of an interval.
func TestLimiter_ForgetsRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := logqueue.NewLimiter(slog.DiscardHandler)
		defer l.Close()
		log := slog.New(enabled{l.Handler()})
		for i := range 5 * logqueue.MaxRuns {
			log.Info(fmt.Sprint("message ", i))
			time.Sleep(logqueue.Interval / 100)
		}
		if n := l.Runs(); n > logqueue.MaxRuns {
			t.Errorf("%d messages are kept, want %d at most", n, logqueue.MaxRuns)
		}
	})
}

// enabled has a discarded record handled.
type enabled struct{ slog.Handler }

func (enabled) Enabled(context.Context, slog.Level) bool { return true }
