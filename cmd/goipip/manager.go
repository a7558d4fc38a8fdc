//go:build linux

package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"goipip/internal/daemon"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	// statusInterval is how often a changed status is told at most.
	statusInterval = time.Second
	// tellTimeout bounds the wait for a service manager that does not read.
	tellTimeout = time.Second
)

// managerEnv are the variables that systemd sets for one process, and not for its children.
var managerEnv = []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "JOURNAL_STREAM"}

// withoutManager returns an environment without managerEnv.
func withoutManager(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(managerEnv, name)
	})
}

// manager is the service manager that started this process, as sd_notify(3) speaks to it.
// Without one, its methods do nothing.
type manager struct {
	conn     *net.UnixConn
	watchdog time.Duration // between two signs of life; 0 for none
	log      *slog.Logger
	// beats has a value when the main loop is to show that it lives, by receiving it. It is
	// nil without a watchdog.
	beats chan struct{}

	stop    chan struct{}
	running sync.WaitGroup
}

// openManager returns the manager that the environment names, and removes it from there. Its
// socket stays connected, because sd.SdNotify would look for it in the environment each time.
// log must not block.
func openManager(log *slog.Logger) *manager {
	m := &manager{log: log, stop: make(chan struct{})}
	path := os.Getenv("NOTIFY_SOCKET")
	interval, watchdogErr := sd.SdWatchdogEnabled(true)
	_ = os.Unsetenv("NOTIFY_SOCKET") // fails for impossible names only
	if path == "" {
		return m
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		log.Warn("cannot tell the service manager that goipip is ready", "err", err)
		return m
	}
	m.conn = conn
	if watchdogErr != nil {
		log.Warn("no watchdog", "err", watchdogErr)
	}
	if interval > 0 {
		m.watchdog = interval / 2 // as sd_watchdog_enabled(3) advises
		m.beats = make(chan struct{})
	}
	return m
}

// tell sends a message of several lines. One that the manager has no room for is lost.
func (m *manager) tell(lines ...string) {
	if m.conn == nil {
		return
	}
	_ = m.conn.SetWriteDeadline(time.Now().Add(tellTimeout))
	if _, err := m.conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		m.log.Debug("the service manager was not told", "err", err)
	}
}

// ready tells that the tunnels of d are there, and from then on how they are, until stopping.
func (m *manager) ready(d *daemon.Daemon) {
	status := d.Summary()
	m.tell(sd.SdNotifyReady, "STATUS="+status)
	if m.conn != nil {
		m.running.Go(func() { m.follow(d, status) })
	}
}

// follow tells of a status that differs from the one told last, and that all loops live.
func (m *manager) follow(d *daemon.Daemon, told string) {
	look := time.NewTicker(statusInterval)
	defer look.Stop()
	var signs <-chan time.Time
	if m.watchdog > 0 {
		ticker := time.NewTicker(m.watchdog)
		defer ticker.Stop()
		signs = ticker.C
	}
	life := life{beats: m.beats, loops: d.Alive, steps: d.Steps}
	for {
		select {
		case <-m.stop:
			return
		case life.asked <- struct{}{}:
			life.asked = nil
		case <-look.C:
			if s := d.Summary(); s != told {
				told = s
				m.tell("STATUS=" + s)
			}
		case <-signs:
			if life.shows() {
				m.tell(sd.SdNotifyWatchdog)
			} else {
				m.log.Error("a loop hangs, and the watchdog gets no sign of life")
			}
		}
	}
}

// life is what a watchdog wants to know of a daemon.
type life struct {
	beats chan struct{} // that the main loop receives from
	asked chan struct{} // beats while the main loop has not answered, and else nil
	loops func() bool   // all loops that carry packets have gone round
	steps func() uint64 // rises while the main loop is busy with many tunnels
	last  uint64        // what steps was
}

// shows reports whether all loops have gone round since the call before, and asks for the
// next time.
func (l *life) shows() bool {
	loops, steps := l.loops(), l.steps()
	alive := loops && (l.asked == nil || steps != l.last)
	l.asked, l.last = l.beats, steps
	return alive
}

// reloading tells that the configuration is read again, and reloaded that it was. systemd tells
// this reload from earlier ones by the time (Type=notify-reload in systemd.service(5)).
func (m *manager) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return // there is no kernel without this clock
	}
	m.tell(sd.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

func (m *manager) reloaded(d *daemon.Daemon) { m.tell(sd.SdNotifyReady, "STATUS="+d.Summary()) }

// stopping tells that the tunnels end.
func (m *manager) stopping() {
	close(m.stop)
	m.running.Wait()
	m.tell(sd.SdNotifyStopping, "STATUS=ending the tunnels")
	if m.conn != nil {
		m.conn.Close()
	}
}
