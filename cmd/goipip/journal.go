//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalSocket is where journald receives (systemd-journald.service(8)).
const journalSocket = "/run/systemd/journal/socket"

// underJournal reports whether standard error goes to the journal, and the journal takes
// records with fields too.
func underJournal() bool {
	ours, err := journal.StderrIsJournalStream()
	if err != nil || !ours {
		return false
	}
	_, err = os.Stat(journalSocket)
	return err == nil
}

// journalHandler writes records to the journal, by its native protocol. A record's message
// ends with its attributes, as journalctl shows it, and each attribute is a field too: TUNNEL
// of the tunnel, and GOIPIP_KEY of key. A Handle may block for as long as journald does.
type journalHandler struct {
	text   slog.Handler // writes attributes to the connection's line
	conn   *journalConn
	fields string // of the attributes by WithAttrs
	prefix string // of groups, for the names of fields
}

// journalConn is the connection that all handlers of a log share.
//
// journal.Send would do the same by a socket that is not connected, which the kernel reports as
// writable while journald's queue is full (unix_dgram_poll in net/unix/af_unix.c): the caller
// would spin as long as that is so.
type journalConn struct {
	path string

	mu   sync.Mutex
	line bytes.Buffer
	conn *net.UnixConn // nil until there is a journal
}

// newJournalHandler connects to the journal at path with each record until that succeeds. A
// record without a journal is lost.
func newJournalHandler(path string, level slog.Leveler) journalHandler {
	conn := &journalConn{path: path}
	text := slog.NewTextHandler(&conn.line, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return journalHandler{text: text, conn: conn}
}

func (h journalHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(h.fields)
	for _, a := range attrs {
		appendField(&b, h.prefix, a)
	}
	h.text, h.fields = h.text.WithAttrs(attrs), b.String()
	return h
}

func (h journalHandler) WithGroup(name string) slog.Handler {
	h.text, h.prefix = h.text.WithGroup(name), h.prefix+name+"_"
	return h
}

func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.conn.mu.Lock()
	defer h.conn.mu.Unlock()
	h.conn.line.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	message := strings.TrimSpace(r.Message + " " + h.conn.line.String())
	var b strings.Builder
	fmt.Fprintf(&b, "MESSAGE=%s\nPRIORITY=%d\nSYSLOG_IDENTIFIER=goipip\n%s", oneLine(message), priority(r.Level), h.fields)
	r.Attrs(func(a slog.Attr) bool {
		appendField(&b, h.prefix, a)
		return true
	})
	return h.conn.send(b.String())
}

// appendField appends an attribute as a field, or the attributes of a group as one each.
func appendField(b *strings.Builder, prefix string, a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		for _, inner := range value.Group() {
			appendField(b, prefix+a.Key+"_", inner)
		}
		return
	}
	name := "GOIPIP_" + fieldName(prefix+a.Key)
	if prefix == "" && a.Key == "tunnel" {
		name = "TUNNEL"
	}
	fmt.Fprintf(b, "%s=%s\n", name, oneLine(value.String()))
}

// fieldName returns what the journal takes for the name of a field: capital letters, digits
// and underscores (journal_field_valid in systemd).
func fieldName(key string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z':
			return c - 'a' + 'A'
		case c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			return c
		}
		return '_'
	}, key)
}

// oneLine spares values the length in front that those of several lines have.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// priority is the journal's, and syslog's severity, of a level.
func priority(level slog.Level) journal.Priority {
	switch {
	case level < slog.LevelInfo:
		return journal.PriDebug
	case level < slog.LevelWarn:
		return journal.PriInfo
	case level < slog.LevelError:
		return journal.PriWarning
	default:
		return journal.PriErr
	}
}

// send sends one record. To a journal that was replaced it connects again.
func (c *journalConn) send(record string) error {
	if c.conn != nil {
		if _, err := c.conn.Write([]byte(record)); err == nil {
			return nil
		}
		c.conn.Close()
		c.conn = nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: c.path, Net: "unixgram"})
	if err != nil {
		return err
	}
	c.conn = conn
	_, err = conn.Write([]byte(record))
	return err
}
