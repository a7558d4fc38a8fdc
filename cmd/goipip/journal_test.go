//go:build linux

package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/logqueue"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
)

// record returns the fields of the next record that a journal gets.
func record(t *testing.T, conn *net.UnixConn) []string {
	t.Helper()
	buf := make([]byte, 4096)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\n"), "\n")
}

func TestJournalFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn := listenSyslog(t, path) // which is a socket of the same type
	log := slog.New(newJournalHandler(path, slog.LevelDebug))
	for level, priority := range map[slog.Level]string{
		slog.LevelDebug: "7", slog.LevelInfo: "6", slog.LevelInfo + 1: "6", slog.LevelWarn: "4", slog.LevelError: "3", slog.LevelError + 4: "3",
	} {
		log.With("tunnel", "tun01").Log(t.Context(), level, "a message", "next-hop", "192.0.2.1", "err", errors.New("one\ntwo"))
		want := []string{"MESSAGE=a message tunnel=tun01 next-hop=192.0.2.1 err=\"one\\ntwo\"", "PRIORITY=" + priority,
			"SYSLOG_IDENTIFIER=goipip", "TUNNEL=tun01", "GOIPIP_NEXT_HOP=192.0.2.1", "GOIPIP_ERR=one; two"}
		if got := record(t, conn); !slices.Equal(got, want) {
			t.Errorf("level %v: %q, want %q", level, got, want)
		}
	}
	var s stats.Snapshot
	s.TX.Packets = 7
	log.WithGroup("g").Info("counters", "tx", s.TX)
	want := []string{"MESSAGE=counters g.tx.packets=7 g.tx.bytes=0", "PRIORITY=6", "SYSLOG_IDENTIFIER=goipip", "GOIPIP_G_TX_PACKETS=7", "GOIPIP_G_TX_BYTES=0"}
	if got := record(t, conn); !slices.Equal(got, want) {
		t.Errorf("a group: %q, want %q", got, want)
	}
	if log := slog.New(newJournalHandler(path, slog.LevelInfo)); log.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("debug is enabled at level info")
	}
}

// A journal that starts late, or again, gets what is logged from then on, and how much was lost.
func TestHazard20_JournalReconnects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	q := logqueue.New(newJournalHandler(path, slog.LevelInfo), logSize)
	defer q.Close(time.Second)
	log := slog.New(q.Handler())
	for range 2 {
		log.Info("to nobody")
		labtest.WaitFor(t, "the loss", func() bool { return q.Lost() == 1 })
		conn := listenSyslog(t, path)
		log.Info("to somebody")
		if got := record(t, conn)[0]; got != "MESSAGE=to somebody" {
			t.Errorf("the journal gets %q", got)
		}
		if got := record(t, conn); got[0] != "MESSAGE=log lines were lost count=1" || got[1] != "PRIORITY=4" {
			t.Errorf("the journal hears of the loss %q", got)
		}
		conn.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A full journal delays nobody. When it has room again it gets what was queued, although all
// that it had was of others.
func TestHazard1_JournalFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn := listenSyslog(t, path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	others := 0
	for ; err == nil; others++ {
		err = unix.Sendto(fd, []byte("MESSAGE=other"), 0, &unix.SockaddrUnix{Name: path})
	}
	others--
	if err != unix.EAGAIN || others == 0 {
		t.Fatalf("%d records fill the journal: %v", others, err)
	}
	const lines, room = 100, 10
	q := logqueue.New(newJournalHandler(path, slog.LevelInfo), room)
	defer q.Close(time.Second)
	log := slog.New(q.Handler())
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for range lines {
			log.Info("ours")
		}
	}()
	labtest.Within(t, "the loggers", logged)
	for range others {
		record(t, conn)
	}
	ours := 0
	for ; ; ours++ {
		if got := record(t, conn)[0]; got != "MESSAGE=ours" {
			if !strings.HasPrefix(got, "MESSAGE=log lines were lost count=") {
				t.Errorf("the journal gets %q", got)
			}
			break
		}
	}
	if ours < room || ours > room+1 {
		t.Errorf("%d lines of %d are there, want as many as the queue has room for, %d, or the one more that was on its way", ours, lines, room)
	}
}

// auto is the journal only where standard error goes there and the journal takes records.
func TestLogFormatAuto(t *testing.T) {
	var o options
	newCommand(&o)
	for _, stream := range []string{"", "1:1", "nonsense"} {
		t.Setenv("JOURNAL_STREAM", stream)
		if got := o.format(); got != "text" {
			t.Errorf("with JOURNAL_STREAM=%q: %s", stream, got)
		}
	}
	for format, want := range map[string]string{"json": "json", "journal": "journal", "text": "text"} {
		o.logFormat = format
		if got := o.format(); got != want {
			t.Errorf("%s is %s", format, got)
		}
	}
}
