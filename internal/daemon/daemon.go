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
	"goipip/internal/resolver"
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

	resolver  *resolver.Resolver
	following sync.WaitGroup // the goroutines of followers

	changing sync.Mutex // held while tunnels are started, changed, and ended on request

	mu         sync.Mutex
	members    map[string]*member       // by the name that the link was created with
	followers  map[string]*follower     // in the same way, of tunnels whose ends are names
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
	is     tunnel.Config // what want has become, with the addresses of its names
	added  bool          // by a request, so that it is not of the configuration
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
	d := &Daemon{
		log: log, host: host, process: p, resolver: resolver.New(), failed: make(chan struct{}),
		members: map[string]*member{}, followers: map[string]*follower{}, none: make(chan struct{}),
	}
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
	d.mu.Lock()
	d.ending = true
	for _, f := range d.followers {
		d.unfollow(f)
	}
	d.mu.Unlock()
	d.sampler.close()
	d.end(slices.Collect(maps.Values(d.running())), why)
	d.changing.Unlock()
	d.following.Wait()
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
// the others from it. A tunnel that cannot be changed goes on as it is. One whose ends are names
// starts or changes when these have addresses, for which Apply does not wait.
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

	d.mu.Lock()
	for name, f := range d.followers {
		if w, ok := wanted[name]; f.waiting && !f.added && !(ok && w.Config.Named()) || ok && f.waiting && f.added {
			d.unfollow(f)
		}
	}
	d.mu.Unlock()
	kept := d.running()
	for _, w := range want {
		if kept[w.Config.Name] != nil {
			continue
		}
		if w.Config.Named() {
			d.follow(w, nil, false)
			continue
		}
		if _, err := d.start(w, w, false); err != nil {
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
			err := d.changeTo(m, w)
			if errors.Is(err, tunnel.ErrHeld) {
				continue
			}
			progress = true
			d.steps.Add(1)
			delete(changes, m)
			if err != nil && !errors.Is(err, tunnel.ErrDeleted) { // which Apply starts
				d.log.Error("the tunnel does not change", "tunnel", m.name, "err", err)
				errs = append(errs, fmt.Errorf("tunnel %s: %w", m.name, err))
			}
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

// changeTo makes want what is wanted of a tunnel. Where it has names that the tunnel had not
// before, the tunnel goes on as it is until they have addresses. It needs changing.
func (d *Daemon) changeTo(m *member, want config.Tunnel) error {
	if c := m.want.Config; want.Config.Named() && !sameNames(c, want.Config) {
		m.want = want
	} else if err := d.changeOne(m, want, want.Between(m.is.Local, m.is.Remote)); err != nil {
		return err
	}
	d.follow(want, m, m.added)
	return nil
}

// changeOne changes a tunnel to what is wanted, of which w has the addresses. It needs changing.
func (d *Daemon) changeOne(m *member, want, w config.Tunnel) error {
	next := settings(w)
	if err := m.tunnel.Change(next); err != nil {
		return err
	}
	m.want, m.is = want, next
	d.log.Info("tunnel has changed", append([]any{"tunnel", m.name}, m.ends()...)...)
	return nil
}

// ends is where a tunnel is, for the log.
func (m *member) ends() []any {
	ends := []any{"local", m.is.LocalText(), "remote", m.is.Remote}
	if m.is.Named() {
		ends = append(ends, "name", m.is.NamesText())
	}
	return append(ends, "mtu", m.tunnel.MTU())
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
// run, nor wait for the addresses of their names, but for those that were deleted on request.
func (d *Daemon) missing(running map[string]*member) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.wanted {
		if f := d.followers[name]; running[name] == nil && (f == nil || !f.waiting) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Len returns how many tunnels run, or wait for the addresses of their names.
func (d *Daemon) Len() int { return len(d.running()) + len(d.waiting()) }

// LogCounters writes the counters of all tunnels to log.
func (d *Daemon) LogCounters(log *slog.Logger) {
	running := d.running()
	for _, name := range slices.Sorted(maps.Keys(running)) {
		log.Info("counters", append([]any{"tunnel", name}, running[name].tunnel.Stats().Attrs()...)...)
	}
	if n := d.host.Unattributed(); n > 0 && len(running) > 1 {
		log.Info("packets for some of the tunnels found no room on a receiving socket", "dropped", n)
	}
}

// running returns the tunnels that run now, by name.
func (d *Daemon) running() map[string]*member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.members)
}

// Start starts a tunnel, and returns its name: without one in w, the first free of goipip0,
// goipip1, … A tunnel whose ends are names starts when these have addresses, and has its name
// from then on.
func (d *Daemon) Start(w config.Tunnel) (name string, err error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if w.Config.Named() {
		d.follow(w, nil, false)
		return w.Config.Name, nil
	}
	m, err := d.start(w, w, false)
	if err != nil {
		return "", err
	}
	return m.tunnel.Name(), nil
}

// start starts w, which is what is wanted with the addresses of its names. It needs changing.
func (d *Daemon) start(w, want config.Tunnel, added bool) (*member, error) {
	defer d.steps.Add(1)
	cfg := settings(w)
	t, err := d.host.Open(cfg, d.log)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(context.Background())
	m := &member{name: t.Name(), want: want, is: cfg, added: added, since: time.Now(), tunnel: t, stop: stop, ended: make(chan struct{})}
	d.mu.Lock()
	for n := 2; d.members[m.name] != nil; n++ { // whose link has another name by now
		m.name = fmt.Sprintf("%s#%d", t.Name(), n)
	}
	if len(d.members) == 0 && d.adding == 0 {
		d.none = make(chan struct{})
	}
	d.members[m.name] = m
	d.mu.Unlock()
	d.log.Info("tunnel is up", append([]any{"tunnel", m.name}, m.ends()...)...)
	go d.run(ctx, m)
	return m, nil
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
	d.unfollow(d.followers[m.name])
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
