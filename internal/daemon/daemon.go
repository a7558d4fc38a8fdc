// Package daemon runs a set of tunnels, known by their names, in one process and one
// network namespace. Apply makes what runs into what is wanted, and leaves alone what
// is as wanted already. A tunnel's end is its own: the others go on.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"

	"goipip/internal/daemon/config"
	"goipip/internal/engine"
	"goipip/internal/underlay"
	"goipip/tun"
)

// Daemon is a set of tunnels. Its methods may be called by one goroutine at a time.
type Daemon struct {
	log  *slog.Logger
	host *underlay.Watcher

	mu      sync.Mutex
	members map[string]*member
}

// member is a tunnel that runs.
type member struct {
	want   config.Tunnel
	tunnel *engine.Tunnel
	stop   context.CancelFunc
	ended  chan struct{}
}

// Open returns a Daemon without tunnels, for the network namespace of the process. Lines
// about a tunnel go to log with its name; log must not block.
func Open(log *slog.Logger) (*Daemon, error) {
	host, err := underlay.Open(log)
	if err != nil {
		return nil, err
	}
	return &Daemon{log: log, host: host, members: map[string]*member{}}, nil
}

// Close ends all tunnels.
func (d *Daemon) Close() {
	d.end(d.running())
	d.host.Close()
}

// Apply ends the tunnels that are not wanted, or not as they are, and starts those that do
// not run. What keeps a tunnel from starting is logged with its name, and returned with
// that of all others; it does not keep the others from it.
func (d *Daemon) Apply(want []config.Tunnel) error {
	wanted := map[string]config.Tunnel{}
	for _, w := range want {
		wanted[w.Config.Name] = w
	}
	running := d.running()
	maps.DeleteFunc(running, func(name string, m *member) bool {
		w, ok := wanted[name]
		return ok && same(w, m.want)
	})
	d.end(running)

	var errs []error
	kept := d.running()
	for _, w := range want {
		if kept[w.Config.Name] != nil {
			continue
		}
		if err := d.start(w); err != nil {
			d.log.Error("the tunnel does not start", "tunnel", w.Config.Name, "err", err)
			errs = append(errs, fmt.Errorf("tunnel %s: %w", w.Config.Name, err))
		}
	}
	return errors.Join(errs...)
}

// same reports whether two tables of a configuration have the same tunnel, wherever they
// stand.
func same(a, b config.Tunnel) bool {
	a.File, a.Line, b.File, b.Line = "", 0, "", 0
	return reflect.DeepEqual(a, b)
}

// Len returns how many tunnels run.
func (d *Daemon) Len() int { return len(d.running()) }

// LogCounters logs the counters of all tunnels.
func (d *Daemon) LogCounters() {
	running := d.running()
	for _, name := range slices.Sorted(maps.Keys(running)) {
		d.log.Info("counters", append([]any{"tunnel", name}, running[name].tunnel.Stats().Attrs()...)...)
	}
}

// running returns the tunnels that run now.
func (d *Daemon) running() map[string]*member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.members)
}

// start starts a tunnel, which removes itself from the members when it ends.
func (d *Daemon) start(w config.Tunnel) error {
	cfg := w.Config
	cfg.Addresses = w.Addresses
	for _, r := range w.Routes {
		cfg.Routes = append(cfg.Routes, tun.Route(r))
	}
	t, err := engine.OpenOn(d.host, cfg, d.log)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{want: w, tunnel: t, stop: stop, ended: make(chan struct{})}
	d.mu.Lock()
	d.members[cfg.Name] = m
	d.mu.Unlock()
	d.log.Info("tunnel is up", "tunnel", cfg.Name, "local", cfg.Local, "remote", cfg.Remote, "mtu", t.MTU())
	go d.run(ctx, m)
	return nil
}

// run carries a tunnel to its end.
func (d *Daemon) run(ctx context.Context, m *member) {
	name := m.want.Config.Name
	err := m.tunnel.Run(ctx)
	s := m.tunnel.Stats()
	log := d.log.With("tunnel", name, "tx", s.TX, "rx", s.RX)
	switch {
	case err == nil:
		log.Info("tunnel is down", "why", "not wanted any more")
	case errors.Is(err, engine.ErrDeleted):
		log.Info("tunnel is down", "why", "link deleted")
	default:
		log.Error("tunnel is down", "err", err)
	}
	m.stop()
	d.mu.Lock()
	delete(d.members, name)
	d.mu.Unlock()
	close(m.ended)
}

// end ends tunnels, and returns when they have left nothing behind.
func (d *Daemon) end(members map[string]*member) {
	for _, m := range members {
		m.stop()
	}
	for _, m := range members {
		<-m.ended
	}
}
