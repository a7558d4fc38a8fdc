package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

var _ control.Handler = (*Daemon)(nil)

// Add starts a tunnel that is not of the configuration. For %d in its name the kernel takes
// the first number that is free. The error is control.ErrEnding once the daemon is about to
// exit.
func (d *Daemon) Add(cfg tunnel.Config) (name string, err error) {
	switch d.process.Role {
	case control.RoleForeground:
		return "", fmt.Errorf("process id %d runs one tunnel, and takes no others", d.process.PID)
	case control.RoleBeside:
		return "", fmt.Errorf("process id %d runs the tunnels of %s, and takes no others", d.process.PID, d.process.Config)
	}
	if !d.beginAdd() {
		return "", control.ErrEnding
	}
	defer d.endAdd()
	cfg.Queues = cmp.Or(cfg.Queues, tunnel.DefaultQueues())
	numbered := cfg
	numbered.Name = strings.Replace(cfg.Name, "%d", "0", 1)
	if err := numbered.Validate(); err != nil {
		return "", err
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	w := fromConfig(cfg)
	if cfg.Named() {
		if cfg.Name == "" || cfg.Name != numbered.Name {
			return "", errors.New("a tunnel whose end is a name needs a name itself")
		}
		if d.running()[cfg.Name] != nil || d.waiting()[cfg.Name] != nil {
			return "", fmt.Errorf("tunnel %q: %w", cfg.Name, syscall.EEXIST)
		}
		d.follow(w, nil, true)
		return cfg.Name, nil
	}
	m, err := d.start(w, w, true)
	if err != nil {
		return "", err
	}
	return m.tunnel.Name(), nil
}

// Expect has Wait wait for the first request to add a tunnel, at most for timeout.
func (d *Daemon) Expect(timeout time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expecting = true
	d.hold()
	time.AfterFunc(timeout, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.expecting {
			d.expecting = false
			d.letGo()
		}
	})
}

// hold keeps Wait waiting until letGo. Both need mu.
func (d *Daemon) hold() {
	if len(d.members) == 0 && d.adding == 0 {
		d.none = make(chan struct{})
	}
	d.adding++
}

func (d *Daemon) letGo() {
	d.adding--
	if len(d.members) == 0 && d.adding == 0 {
		d.empty()
	}
}

// beginAdd reports whether tunnels may be added.
func (d *Daemon) beginAdd() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return false
	}
	if d.expecting {
		d.expecting = false // this is what was expected
	} else {
		d.hold()
	}
	return true
}

func (d *Daemon) endAdd() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.letGo()
}

// EndIfEmpty reports whether the daemon has no tunnel, and takes none from then on.
func (d *Daemon) EndIfEmpty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.members) == 0 && d.adding == 0 {
		d.ending = true
	}
	return d.ending
}

// fromConfig returns what would be the table for cfg in a configuration.
func fromConfig(cfg tunnel.Config) config.Tunnel {
	w := config.Tunnel{Config: cfg, Addresses: cfg.Addresses}
	for _, r := range cfg.Routes {
		w.Routes = append(w.Routes, config.Route(r))
	}
	w.Config.Addresses, w.Config.Routes = nil, nil
	if cfg.LocalDevice != "" {
		w.Config.Local = netip.Addr{}
	}
	if cfg.RemoteName != "" {
		w.Config.Remote = netip.Addr{}
	}
	return w
}

// find returns the tunnel whose link has a name now. A link of this network namespace is
// meant rather than one that was moved to another.
func (d *Daemon) find(name string) (*member, error) {
	var away *member
	for _, m := range d.running() {
		switch s := m.tunnel.State(); {
		case s.Config.Name != name:
		case s.Away:
			away = m
		default:
			return m, nil
		}
	}
	if away != nil {
		return away, nil
	}
	return nil, fmt.Errorf("tunnel %q: %w", name, control.ErrNotFound)
}

// Change makes cfg the settings of the tunnel called name. Its name, queues and offload stay
// as they are.
func (d *Daemon) Change(name string, cfg tunnel.Config) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	m, err := d.find(name)
	if err != nil {
		return err
	}
	is := m.want.Config
	cfg.Name, cfg.Queues, cfg.NoOffload, cfg.Down = is.Name, is.Queues, is.NoOffload, is.Down
	if err := cfg.Validate(); err != nil {
		return err
	}
	w := fromConfig(cfg)
	w.File, w.Line = m.want.File, m.want.Line
	return d.changeTo(m, w)
}

var errDeleted = errors.New("deleted")

// Delete ends the tunnel called name, and returns when its link is gone.
func (d *Daemon) Delete(name string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	m, err := d.find(name)
	if f := d.waiting()[name]; err != nil && f != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.wanted, name)
		d.unfollow(f)
		return nil
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.wanted, m.name)
	d.mu.Unlock()
	d.end([]*member{m}, errDeleted)
	return nil
}

// List returns the tunnels whose links are in the daemon's network namespace.
func (d *Daemon) List(counters bool) []control.Tunnel {
	list := []control.Tunnel{}
	for _, m := range d.running() {
		s := m.tunnel.State()
		if s.Away {
			continue
		}
		t := control.Tunnel{Config: s.Config, Index: s.Index}
		if counters {
			t.Counters = m.tunnel.Stats().Link().Map()
		}
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b control.Tunnel) int { return cmp.Compare(a.Index, b.Index) })
	return list
}

// Status describes the tunnel called name, or with an empty name all tunnels.
func (d *Daemon) Status(name string) (control.Status, error) {
	running := d.running()
	s := d.ownStatus(running)
	if name != "" {
		m, err := d.find(name)
		if f := d.waiting()[name]; err != nil && f != nil {
			s.Tunnels = append(s.Tunnels, d.statusWaiting(f))
			return s, nil
		}
		if err == nil {
			s.Tunnels = append(s.Tunnels, d.status(m, m.tunnel.Stats()))
		}
		return s, err
	}
	for _, m := range running {
		s.Tunnels = append(s.Tunnels, d.status(m, m.tunnel.Stats()))
	}
	s.Tunnels = append(s.Tunnels, d.statusesWaiting()...)
	sortByIndex(s.Tunnels)
	return s, nil
}

// LastStatus describes all tunnels as Status does, and waits neither for changes of tunnels
// nor for those of links: packets that a link's queue had no room for are counted a second
// late, and from the first call on.
func (d *Daemon) LastStatus() control.Status {
	d.scraped.Store(true)
	running := d.running()
	s := d.ownStatus(running)
	for _, m := range running {
		s.Tunnels = append(s.Tunnels, d.status(m, m.tunnel.LastStats()))
	}
	s.Tunnels = append(s.Tunnels, d.statusesWaiting()...)
	sortByIndex(s.Tunnels)
	return s
}

// statusesWaiting describes the tunnels that do not exist yet.
func (d *Daemon) statusesWaiting() (all []control.TunnelStatus) {
	for _, f := range d.waiting() {
		all = append(all, d.statusWaiting(f))
	}
	return all
}

func (d *Daemon) statusWaiting(f *follower) control.TunnelStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := settings(f.want)
	c.Name = cmp.Or(f.name, "goipip%d") // the first free one
	return control.TunnelStatus{Name: c.Name, Config: c, Since: f.since, Trouble: f.why, Link: map[string]uint64{}}
}

func sortByIndex(tunnels []control.TunnelStatus) {
	slices.SortFunc(tunnels, func(a, b control.TunnelStatus) int { return cmp.Compare(a.Index, b.Index) })
}

// ownStatus describes the process, without its tunnels, of which those are given that run.
func (d *Daemon) ownStatus(running map[string]*member) control.Status {
	s := control.Status{
		Process:      d.process,
		Tunnels:      []control.TunnelStatus{},
		Unattributed: d.host.Unattributed(),
		Conflict:     d.host.Conflict(),
	}
	s.Missing = d.missing(running)
	if r := d.process.Role; r == control.RoleRun || r == control.RoleBeside {
		d.mu.Lock()
		defer d.mu.Unlock()
		r := d.reloads
		s.Reloads = &r
	}
	return s
}

// status describes a tunnel whose counters are given.
func (d *Daemon) status(m *member, counted stats.Snapshot) control.TunnelStatus {
	s := m.tunnel.State()
	t := control.TunnelStatus{
		Name:       m.name,
		Config:     s.Config,
		Since:      m.since,
		Index:      s.Index,
		Up:         s.Up,
		Away:       s.Away,
		MTU:        s.MTU,
		MaxMSS:     s.MaxMSS,
		Trouble:    s.Trouble,
		SoftErrors: s.SoftErrors,
		ICMPErrors: s.ICMPErrors,
		Underlay: control.Underlay{
			Source:    s.Source,
			Device:    s.Device,
			NextHop:   s.NextHop,
			LinkAddr:  s.LinkAddr.String(),
			Transmit:  "raw",
			WhyRaw:    s.WhyRaw,
			PathMTU:   s.PathMTU,
			DeviceMTU: s.DeviceMTU,
		},
		Link: counted.Link().Map(),
	}
	if s.LinkAddr != nil {
		t.Underlay.Transmit = "packet"
	}
	if s.Reported {
		t.Underlay.ReportedBy = "router"
	}
	if s.Config.Fast != tunnel.FastOff {
		t.FastPath = &control.FastPath{Used: s.Fast, WhyNot: s.WhyNotFast, Sent: s.FastSent, Received: s.FastReceived}
	}
	if s.Config.Keepalive != 0 {
		t.Keepalive = &control.Keepalive{Carrier: s.SilentSince.IsZero(), SilentSince: s.SilentSince}
		if !t.Keepalive.Carrier && t.Trouble == "" {
			t.Trouble = "the remote end does not answer: the link has no carrier, and takes no packets"
		}
	}
	t.TX, t.RX = d.sampler.traffic(m, counted)
	return t
}
