//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"goipip/internal/daemon/config"
	"goipip/internal/logqueue"
)

const (
	// logSize is how many log lines may wait to be written.
	logSize = 256
	// flushTimeout bounds the wait for the log at the end of the process, whose
	// reader may hang.
	flushTimeout = 250 * time.Millisecond
)

// logHandler writes the log to standard error, or to the journal, as the options say.
func (o *options) logHandler() slog.Handler {
	var level slog.Level
	_ = level.UnmarshalText([]byte(o.logLevel)) // one of newEnum's words
	opts := &slog.HandlerOptions{Level: level}
	switch o.format() {
	case config.LogJSON:
		return slog.NewJSONHandler(os.Stderr, opts)
	case config.LogJournal:
		return newJournalHandler(journalSocket, level)
	default:
		return slog.NewTextHandler(os.Stderr, opts)
	}
}

// format is that of the log, where auto is the journal's if that is where standard error goes.
func (o *options) format() string {
	switch {
	case o.logFormat != config.LogAuto:
		return o.logFormat
	case underJournal():
		return config.LogJournal
	default:
		return config.LogText
	}
}

// errorHandler writes the error that ends the process to standard error: in a JSON log as a
// line of that, and else in plain text. If that goes to the journal, lines begin with their
// priority (sd-daemon(3)): by its own protocol, journald might look for the unit of a process
// that has ended.
func (o *options) errorHandler() slog.Handler {
	if o.format() == config.LogJSON {
		return slog.NewJSONHandler(os.Stderr, nil)
	}
	return plainHandler{os.Stderr, underJournal()}
}

// report writes err, which may be several errors, one a line, and further lines. It
// returns after flushTimeout even if nothing reads them.
func report(h slog.Handler, err error, further ...string) {
	q := logqueue.New(h, logSize)
	defer q.Close(flushTimeout)
	log := slog.New(q.Handler())
	for line := range strings.Lines(err.Error()) {
		log.Error(strings.TrimSpace(line))
	}
	for _, line := range further {
		log.Info(line)
	}
}

// plainHandler writes messages as command line programs do, errors with the name of
// the program. It has no attributes.
type plainHandler struct {
	w        io.Writer
	priority bool // lines begin with <PRIORITY>
}

func (h plainHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h plainHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h plainHandler) WithGroup(string) slog.Handler            { return h }

func (h plainHandler) Handle(_ context.Context, r slog.Record) error {
	line := r.Message + "\n"
	if r.Level >= slog.LevelWarn {
		line = "goipip: " + line
	}
	if h.priority {
		line = fmt.Sprintf("<%d>%s", priority(r.Level), line)
	}
	_, err := io.WriteString(h.w, line)
	return err
}
