// Package logqueue keeps log output away from the goroutines that log. A [Queue] is a bounded buffer of records between
// any number of loggers, which never wait, and one writer goroutine, which may block forever or fail: the reader of a
// pipe hangs, a terminal is closed, the system log restarts. Records that find the queue full, or that the writer cannot
// write, are dropped and counted, and the log later says how many. A [Limiter], in front of it, bounds repeats.
//
// Records are formatted when they are written, on the writer's goroutine. Values that are logged must not change
// afterwards: log copies and snapshots, never a slice of a reused buffer.
package logqueue

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Queue is a queue of log records, with the goroutine that writes them.
type Queue struct {
	inner   slog.Handler
	entries chan entry
	lost    atomic.Uint64 // records dropped since the log last reported a loss

	closing chan struct{} // closed by Close
	close   sync.Once
	written chan struct{} // closed when the writer has ended
}

// entry is a record with its handler: inner, or what WithAttrs and WithGroup made of that.
type entry struct {
	handler slog.Handler
	record  slog.Record
}

// New returns a queue of at most size records in front of inner, and starts its writer. Only the writer calls inner's
// Handle, and a record for which that fails is lost. The caller must call Close.
func New(inner slog.Handler, size int) *Queue {
	q := &Queue{
		inner:   inner,
		entries: make(chan entry, size),
		closing: make(chan struct{}),
		written: make(chan struct{}),
	}
	go q.write()
	return q
}

// Handler returns a handler that puts records into the queue. Its Handle never blocks and never fails, and several
// goroutines may call it at once. Records logged after Close are lost.
func (q *Queue) Handler() slog.Handler { return handler{q, q.inner} }

// Lost returns how many records were lost since the log last said so.
func (q *Queue) Lost() uint64 { return q.lost.Load() }

// Close waits until the writer has written what is queued, at most for timeout. A writer that is still blocked then is
// abandoned, with what it did not write. Further calls do nothing.
func (q *Queue) Close(timeout time.Duration) {
	q.close.Do(func() {
		close(q.closing)
		select {
		case <-q.written:
		case <-after(timeout):
		}
	})
}

// after is time.After without a runtime timer. The first timer makes the runtime open the descriptors of its poller, and
// crash if there are none left, which may be the very error that is queued.
func after(d time.Duration) <-chan struct{} {
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		left := syscall.NsecToTimespec(d.Nanoseconds())
		for syscall.Nanosleep(&left, &left) == syscall.EINTR {
		}
	}()
	return passed
}

// write writes entries until the queue is closed.
func (q *Queue) write() {
	defer close(q.written)
	for {
		select {
		case e := <-q.entries:
			if q.writeEntry(e) && q.lost.Load() > 0 {
				q.catchUp()
			}
		case <-q.closing:
			q.catchUp()
			return
		}
	}
}

// catchUp writes what is queued now, and then how many records were lost in the meantime.
func (q *Queue) catchUp() {
	for range len(q.entries) {
		q.writeEntry(<-q.entries)
	}
	if n := q.lost.Swap(0); n > 0 {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were lost", 0)
		r.AddAttrs(slog.Uint64("count", n))
		if q.inner.Handle(context.Background(), r) != nil {
			q.lost.Add(n)
		}
	}
}

// writeEntry writes one entry, or counts it as lost and reports false. It may block.
func (q *Queue) writeEntry(e entry) bool {
	if e.handler.Handle(context.Background(), e.record) != nil {
		q.lost.Add(1)
		return false
	}
	return true
}

// handler is the loggers' end of a queue.
type handler struct {
	queue *Queue
	inner slog.Handler
}

func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

func (h handler) Handle(_ context.Context, r slog.Record) error {
	select {
	case h.queue.entries <- entry{h.inner, r.Clone()}:
	default:
		h.queue.lost.Add(1)
	}
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.queue, h.inner.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.queue, h.inner.WithGroup(name)}
}
