//go:build linux

package main

import (
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// listenSyslog is a system log at path.
func listenSyslog(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// message returns the next message, without the time and with PID for the process id.
func message(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 1000)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`>.*goipip\[\d+\]`).ReplaceAllString(string(buf[:n]), ">goipip[PID]")
}

func TestHazard20_SyslogSeverities(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	conn := listenSyslog(t, path)
	h := newSyslogHandler(func() (*syslog.Writer, error) {
		return syslog.Dial("unixgram", path, syslog.LOG_DAEMON|syslog.LOG_INFO, "goipip")
	})
	log := slog.New(h).With("tunnel", "tun01")
	for level, want := range map[slog.Level]string{ // 3<<3 is LOG_DAEMON
		slog.LevelInfo:      "<30>goipip[PID]: msg=\"a message\" tunnel=tun01 mtu=1480\n",
		slog.LevelInfo + 1:  "<30>goipip[PID]: msg=\"a message\" tunnel=tun01 mtu=1480\n",
		slog.LevelWarn:      "<28>goipip[PID]: msg=\"a message\" tunnel=tun01 mtu=1480\n",
		slog.LevelError:     "<27>goipip[PID]: msg=\"a message\" tunnel=tun01 mtu=1480\n",
		slog.LevelError + 4: "<27>goipip[PID]: msg=\"a message\" tunnel=tun01 mtu=1480\n",
	} {
		log.Log(t.Context(), level, "a message", "mtu", 1480)
		if got := message(t, conn); got != want {
			t.Errorf("level %v: %q, want %q", level, got, want)
		}
	}
	if err := h.Handle(t.Context(), slog.NewRecord(time.Now(), slog.LevelDebug, "details", 0)); err != nil {
		t.Error(err)
	}
	if got, want := message(t, conn), "<31>goipip[PID]: msg=details\n"; got != want {
		t.Errorf("debug: %q, want %q", got, want)
	}
}

// A system log that starts late, or again, gets what is logged from then on.
func TestHazard20_SyslogReconnects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := slog.New(newSyslogHandler(func() (*syslog.Writer, error) {
		return syslog.Dial("unixgram", path, syslog.LOG_DAEMON|syslog.LOG_INFO, "goipip")
	}))
	for _, text := range []string{"first", "second"} {
		log.Info("to nobody")
		conn := listenSyslog(t, path)
		log.Info(text)
		if got, want := message(t, conn), "<30>goipip[PID]: msg="+text+"\n"; got != want {
			t.Errorf("the system log gets %q, want %q", got, want)
		}
		conn.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
