package logqueue_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"goipip/internal/logqueue"
)

// patience is when a test gives up on what must happen.
const patience = 10 * time.Second

// gate is a writer that blocks until it is opened.
type gate struct {
	begun chan struct{} // has a value once somebody writes
	open  chan struct{} // closed to open it

	mu  sync.Mutex
	buf bytes.Buffer
}

func newGate() *gate {
	return &gate{begun: make(chan struct{}, 1), open: make(chan struct{})}
}

func (g *gate) Write(b []byte) (int, error) {
	select {
	case g.begun <- struct{}{}:
	default:
	}
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(b)
}

func (g *gate) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}

// text returns a handler that writes all but the time to g.
func (g *gate) text(level slog.Level) slog.Handler {
	return slog.NewTextHandler(g, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		},
	})
}

// lines returns what n lines of that text look like.
func lines(texts ...string) string {
	var b strings.Builder
	for _, text := range texts {
		fmt.Fprintf(&b, "level=INFO msg=%s\n", text)
	}
	return b.String()
}

func TestOrderAndAttributes(t *testing.T) {
	g := newGate()
	close(g.open)
	q := logqueue.New(g.text(slog.LevelInfo), 10)
	log := slog.New(q.Handler())
	log.Info("first", "n", 1)
	log.Debug("not enabled")
	log.With("tunnel", "tun01").WithGroup("tx").Info("second", "packets", 2)
	log.Info("third")
	q.Close(patience)
	want := "level=INFO msg=first n=1\nlevel=INFO msg=second tunnel=tun01 tx.packets=2\nlevel=INFO msg=third\n"
	if got := g.String(); got != want {
		t.Errorf("the log says\n%swant\n%s", got, want)
	}
}

// TestHazard1_BlockedWriter fills a queue whose writer is blocked, and lets it go on.
func TestHazard1_BlockedWriter(t *testing.T) {
	g := newGate()
	q := logqueue.New(g.text(slog.LevelInfo), 2)
	log := slog.New(q.Handler())
	log.Info("1")
	<-g.begun
	for i := 2; i <= 10; i++ {
		log.Info(fmt.Sprint(i))
	}
	close(g.open)
	q.Close(patience)
	if got, want := g.String(), lines("1", "2", "3")+"level=WARN msg=\"log lines were lost\" count=7\n"; got != want {
		t.Errorf("the log says\n%swant\n%s", got, want)
	}
}

// The loss is told of without waiting for the end, and once.
func TestHazard1_LossIsToldOnce(t *testing.T) {
	g := newGate()
	q := logqueue.New(g.text(slog.LevelError), 1)
	log := slog.New(q.Handler())
	log.Error("1")
	<-g.begun
	log.Error("2")
	log.Error("3")
	close(g.open)
	const lost = "level=WARN msg=\"log lines were lost\" count=1\n"
	for deadline := time.Now().Add(patience); !strings.Contains(g.String(), lost); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log says\n%swant %s", g, lost)
		}
	}
	log.Error("4")
	q.Close(patience)
	if got, want := g.String(), "level=ERROR msg=1\nlevel=ERROR msg=2\n"+lost+"level=ERROR msg=4\n"; got != want {
		t.Errorf("the log says\n%swant\n%s", got, want)
	}
}

func TestHazard1_CloseGivesUp(t *testing.T) {
	g := newGate()
	defer close(g.open)
	q := logqueue.New(g.text(slog.LevelInfo), 1)
	slog.New(q.Handler()).Info("blocked")
	<-g.begun
	const timeout = 50 * time.Millisecond
	closed := make(chan time.Duration, 1)
	go func() {
		begin := time.Now()
		q.Close(timeout)
		closed <- time.Since(begin)
	}()
	select {
	case took := <-closed:
		if took < timeout {
			t.Errorf("Close(%v) gives up after %v", timeout, took)
		}
	case <-time.After(patience):
		t.Fatal("Close waits for a writer that is blocked")
	}
	slog.New(q.Handler()).Info("after Close")
	slog.New(q.Handler()).Info("after Close, and the queue is full")
	q.Close(0)
}

// refusing is a writer that fails at first.
type refusing struct {
	bytes.Buffer
	failures int
}

func (r *refusing) Write(b []byte) (int, error) {
	if r.failures--; r.failures >= 0 {
		return 0, errors.New("broken pipe")
	}
	return r.Buffer.Write(b)
}

// What cannot be written is lost, and told of when the log works again.
func TestHazard1_ErrorsAreLosses(t *testing.T) {
	w := &refusing{failures: 2}
	q := logqueue.New(slog.NewTextHandler(w, nil), 10)
	log := slog.New(q.Handler())
	for i := range 3 {
		log.Info(fmt.Sprint("line ", i))
	}
	q.Close(patience)
	const lost = "level=WARN msg=\"log lines were lost\" count=2\n"
	if got := w.String(); !strings.Contains(got, "line 2") || strings.Contains(got, "line 1") || !strings.HasSuffix(got, lost) {
		t.Errorf("the log says %q", got)
	}
}

// Loggers of several goroutines lose nothing that the queue has room for, and count the rest.
func TestConcurrentLoggers(t *testing.T) {
	const loggers, each = 8, 500
	g := newGate()
	close(g.open)
	q := logqueue.New(g.text(slog.LevelInfo), 16)
	var wg sync.WaitGroup
	for range loggers {
		wg.Go(func() {
			log := slog.New(q.Handler())
			for range each {
				log.Info("line")
			}
		})
	}
	wg.Wait()
	q.Close(patience)
	written, lost := 0, 0
	for line := range strings.Lines(g.String()) {
		var n int
		if _, err := fmt.Sscanf(line, "level=WARN msg=\"log lines were lost\" count=%d\n", &n); err == nil {
			lost += n
			continue
		}
		written++
	}
	if written+lost != loggers*each {
		t.Errorf("%d lines written and %d lost, of %d", written, lost, loggers*each)
	}
}
