package daemon

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// mostNamed is how many tunnels a Summary names for each kind of trouble.
const mostNamed = 5

// Summary says in one line how the tunnels are: "3 tunnels up, 1 without a usable route: tun02,
// 1 not running: tun03". Those without a usable route are up too. Any goroutine may call it.
func (d *Daemon) Summary() string {
	var stuck []string
	running := d.running()
	for name, m := range running {
		if m.tunnel.Trouble() != "" {
			stuck = append(stuck, name)
		}
	}
	summary := fmt.Sprintf("%d tunnels up", len(running))
	if len(running) == 1 {
		summary = "1 tunnel up"
	}
	waiting := slices.Collect(maps.Keys(d.waiting()))
	return summary + named("without a usable route", stuck) + named("waiting for an address", waiting) + named("not running", d.missing(running))
}

// named says how many tunnels share a trouble, and which.
func named(trouble string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	more := ""
	if len(names) > mostNamed {
		more = ", …"
	}
	return fmt.Sprintf(", %d %s: %s%s", len(names), trouble, strings.Join(names[:min(len(names), mostNamed)], " "), more)
}

// askInterval is the least time between two questions to the loops. An idle loop answers in
// microseconds, and one that waits for a full queue in 10 ms.
const askInterval = 100 * time.Millisecond

// life is what the loops have answered. A watchdog and any number of probes share it: one that
// asked just behind another would take a loop that has had no time to answer for one that hangs.
type life struct {
	mu      sync.Mutex
	asked   time.Time
	hanging bool // one of them had not answered when it was asked again
}

// Alive reports whether all loops that carry packets have gone round since they were asked last,
// and asks again, see engine.Engine. Within askInterval it has the former result.
func (d *Daemon) Alive() bool {
	l := &d.life
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.asked) >= askInterval {
		l.hanging, l.asked = !d.host.Alive(), now
	}
	return !l.hanging
}

// Health returns an error if no packets can pass in this process any more: the loops that carry
// them have ended, or one has not gone round since the call before, nor within a second.
func (d *Daemon) Health() error {
	if err := d.host.Err(); err != nil {
		return fmt.Errorf("the loops that carry packets have ended: %w: restart goipip", err)
	}
	for until := time.Now().Add(time.Second); !d.Alive(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			return errors.New("a loop that carries packets hangs: restart goipip")
		}
	}
	return nil
}

// Steps counts the tunnels that have been started, changed and ended, so that a long Apply
// can be told from one that hangs.
func (d *Daemon) Steps() uint64 { return d.steps.Load() }

// Failed returns a channel that is closed when the last tunnel ends by an error. What broke it
// may have broken all, such as a socket that they share, and then no tunnel starts any more in
// this process.
func (d *Daemon) Failed() <-chan struct{} { return d.failed }
