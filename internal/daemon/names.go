package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"goipip/internal/daemon/config"
	"goipip/internal/resolver"
	"goipip/internal/tunnel"
)

// The time until a name is looked up again is that for which the answer holds, but no less
// than minLookup, and after an error minLookup at first, and then twice as long each time, up
// to maxRetry. A tunnel's resolve-interval bounds both.
const (
	minLookup = 5 * time.Second
	maxRetry  = time.Minute
)

// follower keeps a tunnel between the addresses that its names stand for. Until they have
// some, the tunnel does not exist.
type follower struct {
	daemon *Daemon
	log    *slog.Logger // with the tunnel's name
	name   string       // of the tunnel; empty for the first free one
	added  bool         // by a request
	ctx    context.Context
	stop   context.CancelFunc
	lookUp chan struct{} // the remote end is silent: it may have another address
	moved  chan struct{} // the device may have another address

	member *member       // nil while the tunnel waits; under the Daemon's changing
	want   config.Tunnel // written under both of the Daemon's locks

	// Under the Daemon's mu.
	why     string // the tunnel waits
	since   time.Time
	waiting bool // so that Wait waits

	// Of the follower's goroutine.
	remote, local namedEnd
	retry         time.Duration // after the last error; 0 after an answer
	failed        string        // why the tunnel cannot be between its ends, as logged
}

// namedEnd is one end of a tunnel.
type namedEnd struct {
	addr    netip.Addr // the zero Addr until there is one
	failing bool       // the last lookup failed, as logged
}

// follow has a tunnel follow its names, or no names any more, if w has none. m is the tunnel
// if it runs, which is then between other names than w's, or none. It needs changing.
func (d *Daemon) follow(w config.Tunnel, m *member, added bool) {
	name := w.Config.Name
	if m != nil {
		name = m.name
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.followers[name]
	if f != nil && sameNames(f.want.Config, w.Config) {
		if f.want.Config.ResolveInterval != w.Config.ResolveInterval {
			notify(f.lookUp)
		}
		f.want = w
		return
	}
	d.unfollow(f)
	if !w.Config.Named() {
		return
	}
	f = &follower{
		daemon: d, log: d.log, name: name, added: added, want: w, member: m,
		lookUp: make(chan struct{}, 1), moved: make(chan struct{}, 1),
	}
	if name != "" {
		f.log = d.log.With("tunnel", name)
	}
	f.ctx, f.stop = context.WithCancel(context.Background())
	d.followers[name] = f
	if m == nil {
		f.why, f.since, f.waiting = "waits for the address of "+w.Config.NamesText(), time.Now(), true
		d.hold()
	}
	d.following.Go(func() { f.run(w.Config) })
}

// unfollow ends a follower, which may be nil. It needs mu.
func (d *Daemon) unfollow(f *follower) {
	if f == nil {
		return
	}
	f.stop()
	if d.followers[f.name] == f {
		delete(d.followers, f.name)
	}
	f.waitNoMore()
}

// waitNoMore needs the Daemon's mu.
func (f *follower) waitNoMore() {
	if f.waiting {
		f.waiting = false
		f.daemon.letGo()
	}
}

// waiting returns the followers of tunnels that do not exist yet, by name.
func (d *Daemon) waiting() map[string]*follower {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := map[string]*follower{}
	for name, f := range d.followers {
		if f.waiting {
			found[name] = f
		}
	}
	return found
}

// lookUpNames has the names of a tunnel looked up soon.
func (d *Daemon) lookUpNames(m *member) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.followers[m.name]; f != nil {
		notify(f.lookUp)
	}
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func sameNames(a, b tunnel.Config) bool {
	return a.LocalDevice == b.LocalDevice && a.RemoteName == b.RemoteName &&
		(a.LocalDevice != "" || a.Local == b.Local) && (a.RemoteName != "" || a.Remote == b.Remote)
}

// answer is what came of a lookup.
type answer struct {
	resolver.Answer
	err error
}

// run looks the names of c up until the follower is stopped.
func (f *follower) run(c tunnel.Config) {
	f.remote.addr, f.local.addr = c.Remote, c.Local
	if c.LocalDevice != "" {
		cancel := f.daemon.host.FollowDevice(c.LocalDevice, func() { notify(f.moved) })
		defer cancel()
		f.findLocal(c.LocalDevice)
	}
	answers := make(chan answer, 1)
	asking := false
	due, again := time.NewTimer(0), time.NewTimer(minLookup)
	defer due.Stop()
	defer again.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-f.moved:
			f.findLocal(c.LocalDevice)
		case <-f.lookUp:
			due.Reset(0)
		case <-due.C:
			if c.RemoteName != "" && !asking {
				asking = true
				f.daemon.following.Go(func() { // servers may take their time
					a, err := f.daemon.resolver.Lookup(f.ctx, c.RemoteName)
					answers <- answer{a, err}
				})
			}
		case a := <-answers:
			asking = false
			due.Reset(f.foundRemote(c.RemoteName, a))
		case <-again.C:
		}
		if !f.settle() {
			again.Reset(minLookup)
		}
	}
}

// foundRemote takes note of an answer, and returns when the next lookup is due. Of several
// addresses the tunnel keeps the one that it has.
func (f *follower) foundRemote(name string, a answer) (due time.Duration) {
	if a.err == nil && !slices.Contains(a.Addrs, f.remote.addr) {
		f.remote.addr = a.Addrs[0]
	}
	f.tell(&f.remote, name, a.err)
	if a.err != nil {
		f.retry = min(max(2*f.retry, minLookup), maxRetry)
		return min(f.retry, f.interval())
	}
	f.retry = 0
	return min(max(a.TTL, minLookup), f.interval())
}

// interval is the most time between two lookups.
func (f *follower) interval() time.Duration {
	f.daemon.mu.Lock()
	defer f.daemon.mu.Unlock()
	return time.Duration(cmp.Or(f.want.Config.ResolveInterval, tunnel.MaxResolveInterval))
}

// findLocal reads the address of the local end's device.
func (f *follower) findLocal(device string) {
	addr, err := f.daemon.host.FirstAddress(device)
	if err == nil {
		f.local.addr = addr
	}
	f.tell(&f.local, device, err)
}

// tell logs when lookups begin to fail, and when they succeed again.
func (f *follower) tell(e *namedEnd, name string, err error) {
	if f.ctx.Err() != nil {
		return
	}
	switch failed := err != nil; {
	case failed && !e.addr.IsValid():
		f.daemon.setWhy(f, fmt.Sprintf("waits for the address of %s: %v", name, err))
		if !e.failing {
			f.log.Warn("this name has no address yet: the tunnel waits until it has one", "name", name, "err", err)
		}
	case failed && !e.failing:
		f.log.Warn("this name has no address any more: the tunnel keeps the one that it has", "name", name, "address", e.addr, "err", err)
	case !failed && e.failing:
		f.log.Info("this name has an address now", "name", name, "address", e.addr)
	}
	e.failing = err != nil
}

// setWhy records why a tunnel waits.
func (d *Daemon) setWhy(f *follower, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f.why = why
}

// settle brings the tunnel to where its ends are, if that is known. It reports false if that
// is to be tried again.
func (f *follower) settle() (done bool) {
	d := f.daemon
	d.changing.Lock()
	defer d.changing.Unlock()
	c := &f.want.Config
	unknown := c.RemoteName != "" && !f.remote.addr.IsValid() || c.LocalDevice != "" && !f.local.addr.IsValid()
	if f.ctx.Err() != nil || unknown {
		return true
	}
	err := d.bring(f, f.want.Between(f.local.addr, f.remote.addr))
	switch {
	case err == nil:
		f.failed = ""
	case f.failed != err.Error():
		f.failed = err.Error()
		f.log.Error("the tunnel cannot be between the addresses of its names", "local", f.local.addr, "remote", f.remote.addr, "err", err)
		if f.member == nil {
			d.setWhy(f, err.Error())
		}
	}
	return err == nil
}

// bring starts or changes f's tunnel, to be w, which has addresses. It needs changing.
func (d *Daemon) bring(f *follower, w config.Tunnel) error {
	if err := settings(w).Validate(); err != nil {
		return err
	}
	m := f.member
	if m != nil {
		if reflect.DeepEqual(settings(w), m.is) {
			return nil
		}
		err := d.changeOne(m, f.want, w)
		if errors.Is(err, tunnel.ErrDeleted) { // which ends the follower too
			return nil
		}
		return err
	}
	m, err := d.start(w, f.want, f.added)
	switch {
	case errors.Is(err, tunnel.ErrHeld): // by a tunnel that may go on to another address
		return err
	case err != nil:
		f.log.Error("the tunnel does not start", "err", err)
		d.mu.Lock()
		d.failure = err
		d.unfollow(f)
		d.mu.Unlock()
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.followers, f.name)
	f.waitNoMore()
	f.member, f.name = m, m.name
	if d.members[m.name] == m { // unless it has ended
		d.followers[m.name] = f
	} else {
		f.stop()
	}
	return nil
}
