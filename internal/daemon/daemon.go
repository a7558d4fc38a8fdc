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
	"sync/atomic"
	"time"

	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/tunnel"
	"goipip/tun"
)

// Daemon is a set of tunnels. Any goroutine may call its methods; threads that change
// tunnels must be in the network namespace that it was opened in.
type Daemon struct {
	log     *slog.Logger
	host    *tunnel.Host
	process control.Process
	sampler sampler
	life    life
	steps   atomic.Uint64 // see Steps
	failed  chan struct{} // see Failed
	scraped atomic.Bool   // LastStatus was called, so that queue drops are to be read

	changing sync.Mutex // held while tunnels are started, changed, and ended on request

	mu         sync.Mutex
	members    map[string]*member       // by the name that the link was created with
	adding     int                      // requests to add a tunnel that are under way, or expected
	expecting  bool                     // one of these is the first
	ending     bool                     // no tunnel is added any more
	none       chan struct{}            // closed while there are no members, and none is being added
	wanted     map[string]config.Tunnel // of the configuration, but for those that were deleted on request
	configured bool                     // Configured was called
	reloads    control.Reloads
	failure    error // by which the last tunnel ended that did not end as wanted
}

// member is a tunnel that runs.
type member struct {
	name   string
	want   config.Tunnel
	added  bool // by a request, so that it is not of the configuration
	since  time.Time
	tunnel *tunnel.Tunnel
	stop   context.CancelCauseFunc
	ended  chan struct{}
	sample sample
}

// Open returns a Daemon without tunnels, for the network namespace of the calling thread,
// whose tunnels share p.Workers workers; p describes the process to clients. Lines about a
// tunnel go to log with its name; log must not block.
func Open(p control.Process, log *slog.Logger) (*Daemon, error) {
	host, err := tunnel.OpenHost(p.Workers, log)
	if err != nil {
		return nil, err
	}
	d := &Daemon{log: log, host: host, process: p, members: map[string]*member{}, none: make(chan struct{}), failed: make(chan struct{})}
	close(d.none)
	d.sampler.start(d)
	return d, nil
}

// Workers returns how many workers serve the tunnels best by themselves: as many as the
// tunnel with the most queues has.
func Workers(tunnels []config.Tunnel) int {
	n := 1
	for _, t := range tunnels {
		n = max(n, t.Config.Queues)
	}
	return n
}

// Close ends all tunnels, and logs why.
func (d *Daemon) Close(why error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	d.mu.Lock()
	d.ending = true
	d.mu.Unlock()
	d.sampler.close()
	d.end(slices.Collect(maps.Values(d.running())), why)
	d.host.Close()
}

// Wait returns when no tunnel runs, or ctx is done. The error is the one by which the last
// tunnel ended, unless its link was deleted.
func (d *Daemon) Wait(ctx context.Context) error {
	d.mu.Lock()
	none := d.none
	d.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil
	case <-none:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.failure
	}
}

var errUnwanted = errors.New("not wanted any more")

// Apply makes want the configuration: it ends the tunnels that are not in it but were in the
// one before, changes those that are wanted otherwise, and starts those that do not run.
// Tunnels that Add has started go on, unless want has one of that name. What keeps a tunnel
// from that is logged with its name, and returned with that of all others; it does not keep
// the others from it. A tunnel that cannot be changed goes on as it is.
func (d *Daemon) Apply(want []config.Tunnel) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	wanted := map[string]config.Tunnel{}
	for _, w := range want {
		wanted[w.Config.Name] = w
	}
	d.mu.Lock()
	d.wanted = wanted
	d.mu.Unlock()
	var unwanted []*member
	changes := map[*member]config.Tunnel{}
	for name, m := range d.running() {
		w, ok := wanted[name]
		if !ok && m.added {
			continue
		}
		m.added = false
		switch {
		case !ok || m.want.Config.NeedsNewLink(w.Config):
			unwanted = append(unwanted, m)
		case !same(w, m.want):
			changes[m] = w
		}
	}
	d.end(unwanted, errUnwanted)
	errs := d.change(changes)

	kept := d.running()
	for _, w := range want {
		if kept[w.Config.Name] != nil {
			continue
		}
		if _, err := d.start(w, false); err != nil {
			d.log.Error("the tunnel does not start", "tunnel", w.Config.Name, "err", err)
			errs = append(errs, fmt.Errorf("tunnel %s: %w", w.Config.Name, err))
		}
	}
	return errors.Join(errs...)
}

// change changes tunnels. Where one takes the addresses that another leaves, the other
// goes first; where they trade addresses, their links are made anew by Apply.
func (d *Daemon) change(changes map[*member]config.Tunnel) (errs []error) {
	for progress := true; progress; {
		progress = false
		for m, w := range changes {
			err := m.tunnel.Change(settings(w))
			if errors.Is(err, tunnel.ErrHeld) {
				continue
			}
			progress = true
			d.steps.Add(1)
			delete(changes, m)
			if err != nil && !errors.Is(err, tunnel.ErrDeleted) { // which Apply starts
				d.log.Error("the tunnel does not change", "tunnel", m.name, "err", err)
				errs = append(errs, fmt.Errorf("tunnel %s: %w", m.name, err))
				continue
			}
			m.want = w
			d.log.Info("tunnel has changed", "tunnel", m.name, "local", w.Config.LocalText(), "remote", w.Config.Remote, "mtu", m.tunnel.MTU())
		}
	}
	d.end(slices.Collect(maps.Keys(changes)), errUnwanted)
	return errs
}

// Configured takes note of how the configuration was read and applied, at the start and at each
// reload: err is what kept it from that.
func (d *Daemon) Configured(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &d.reloads
	if d.configured {
		if err == nil {
			r.Succeeded++
		} else {
			r.Failed++
		}
	}
	d.configured, r.LastFailed = true, err != nil
	if err == nil {
		r.LastGood = time.Now()
	}
}

// same reports whether two tables of a configuration have the same tunnel, wherever they
// stand.
func same(a, b config.Tunnel) bool {
	a.File, a.Line, b.File, b.Line = "", 0, "", 0
	return reflect.DeepEqual(a, b)
}

// settings are those of a table.
func settings(w config.Tunnel) tunnel.Config {
	cfg := w.Config
	cfg.Addresses = w.Addresses
	for _, r := range w.Routes {
		cfg.Routes = append(cfg.Routes, tun.Route(r))
	}
	return cfg
}

// missing returns the names of the tunnels of the configuration that are not among those that
// run, but for those that were deleted on request.
func (d *Daemon) missing(running map[string]*member) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.wanted {
		if running[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Len returns how many tunnels run.
func (d *Daemon) Len() int { return len(d.running()) }

// LogCounters logs the counters of all tunnels.
func (d *Daemon) LogCounters() {
	running := d.running()
	for _, name := range slices.Sorted(maps.Keys(running)) {
		d.log.Info("counters", append([]any{"tunnel", name}, running[name].tunnel.Stats().Attrs()...)...)
	}
	if n := d.host.Unattributed(); n > 0 && len(running) > 1 {
		d.log.Info("packets for some of the tunnels found no room on a receiving socket", "dropped", n)
	}
}

// running returns the tunnels that run now, by name.
func (d *Daemon) running() map[string]*member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.members)
}

// Start starts a tunnel, and returns its name: without one in w, the first free of goipip0,
// goipip1, …
func (d *Daemon) Start(w config.Tunnel) (name string, err error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	return d.start(w, false)
}

func (d *Daemon) start(w config.Tunnel, added bool) (name string, err error) {
	defer d.steps.Add(1)
	t, err := d.host.Open(settings(w), d.log)
	if err != nil {
		return "", err
	}
	ctx, stop := context.WithCancelCause(context.Background())
	m := &member{name: t.Name(), want: w, added: added, since: time.Now(), tunnel: t, stop: stop, ended: make(chan struct{})}
	d.mu.Lock()
	if len(d.members) == 0 && d.adding == 0 {
		d.none = make(chan struct{})
	}
	d.members[m.name] = m
	d.mu.Unlock()
	d.log.Info("tunnel is up", "tunnel", m.name, "local", w.Config.LocalText(), "remote", w.Config.Remote, "mtu", t.MTU())
	go d.run(ctx, m)
	return m.name, nil
}

// run carries a tunnel to its end.
func (d *Daemon) run(ctx context.Context, m *member) {
	err := m.tunnel.Run(ctx)
	s := m.tunnel.Stats()
	log := d.log.With("tunnel", m.name)
	why := context.Cause(ctx)
	if errors.Is(err, tunnel.ErrDeleted) {
		why, err = errors.New("link deleted"), nil
	}
	if err == nil {
		log.Info("tunnel is down", "why", why.Error(), "tx", s.TX, "rx", s.RX)
	} else {
		log.Error("tunnel is down", "err", err, "tx", s.TX, "rx", s.RX)
	}
	m.stop(nil)
	d.steps.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = err
	delete(d.members, m.name)
	if len(d.members) == 0 && d.adding == 0 {
		d.empty()
	}
	close(m.ended)
}

// empty tells those that wait that there is no tunnel. It needs mu.
func (d *Daemon) empty() {
	close(d.none)
	select {
	case <-d.failed:
	default:
		if d.failure != nil {
			close(d.failed)
		}
	}
}

// end ends tunnels, and returns when they have left nothing behind.
func (d *Daemon) end(members []*member, why error) {
	for _, m := range members {
		m.stop(why)
	}
	for _, m := range members {
		<-m.ended
	}
}
