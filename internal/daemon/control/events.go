package control

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"sync"
)

// eventsQueued is how many events a client may be late.
const eventsQueued = 256

// Events passes log records on to the clients that follow them. One that is more than 256
// records late misses some. It never blocks.
type Events struct {
	mu        sync.Mutex
	followers map[chan json.RawMessage]struct{}
	closed    bool
}

// NewEvents returns Events without followers.
func NewEvents() *Events {
	return &Events{followers: map[chan json.RawMessage]struct{}{}}
}

// Handler returns a log handler for records from info on.
func (e *Events) Handler() slog.Handler {
	return eventHandler{slog.NewJSONHandler(e, nil), e}
}

// eventHandler formats records only if somebody follows.
type eventHandler struct {
	slog.Handler
	events *Events
}

func (h eventHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.events.followed() && h.Handler.Enabled(ctx, level)
}

func (h eventHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return eventHandler{h.Handler.WithAttrs(attrs), h.events}
}

func (h eventHandler) WithGroup(name string) slog.Handler {
	return eventHandler{h.Handler.WithGroup(name), h.events}
}

// Write passes one record on, as its JSON handler has formatted it.
func (e *Events) Write(line []byte) (int, error) {
	event := json.RawMessage(bytes.TrimSpace(bytes.Clone(line)))
	e.mu.Lock()
	defer e.mu.Unlock()
	for f := range e.followers {
		select {
		case f <- event:
		default:
		}
	}
	return len(line), nil
}

func (e *Events) followed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.followers) > 0
}

// subscribe returns the events from now on. The channel is closed by Close.
func (e *Events) subscribe() (events <-chan json.RawMessage, cancel func()) {
	f := make(chan json.RawMessage, eventsQueued)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		close(f)
		return f, func() {}
	}
	e.followers[f] = struct{}{}
	return f, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.followers, f)
	}
}

// Close ends all subscriptions.
func (e *Events) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for f := range e.followers {
		close(f)
	}
	clear(e.followers)
}
