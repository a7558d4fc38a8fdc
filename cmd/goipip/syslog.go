//go:build linux

package main

import (
	"bytes"
	"context"
	"log/slog"
	"log/syslog"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// syslogHandler writes records to the system log, with the severity of their level.
// Time and severity are the system log's business, and not in the text. A Handle may
// block for as long as the system log does.
type syslogHandler struct {
	text slog.Handler // writes to the connection's line
	conn *syslogConn
}

// syslogConn is the connection that all handlers of a log share.
type syslogConn struct {
	mu   sync.Mutex
	line bytes.Buffer
	dial func() (*syslog.Writer, error)
	w    *syslog.Writer // nil until there is a system log; it reconnects by itself
}

// newSyslogHandler connects with dial, and tries again with each record until that
// succeeds: the system log may start later. A record without a system log is lost.
func newSyslogHandler(dial func() (*syslog.Writer, error)) syslogHandler {
	conn := &syslogConn{dial: dial}
	text := slog.NewTextHandler(&conn.line, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return syslogHandler{text, conn}
}

// dialSyslog connects to this machine's system log.
func dialSyslog() (*syslog.Writer, error) {
	return syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "goipip")
}

func (h syslogHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

func (h syslogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return syslogHandler{h.text.WithAttrs(attrs), h.conn}
}

func (h syslogHandler) WithGroup(name string) slog.Handler {
	return syslogHandler{h.text.WithGroup(name), h.conn}
}

func (h syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	h.conn.mu.Lock()
	defer h.conn.mu.Unlock()
	h.conn.line.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	return h.conn.send(r.Level)
}

// send sends the line.
func (c *syslogConn) send(level slog.Level) (err error) {
	if c.w == nil {
		if c.w, err = c.dial(); err != nil {
			c.w = nil
			return err
		}
	}
	line := c.line.String()
	switch priority(level) {
	case journal.PriDebug:
		return c.w.Debug(line)
	case journal.PriInfo:
		return c.w.Info(line)
	case journal.PriWarning:
		return c.w.Warning(line)
	default:
		return c.w.Err(line)
	}
}
