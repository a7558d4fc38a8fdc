// Package doctor examines a host for what keeps tunnels from working, or from working well: each
// finding says what was seen, why that matters, and what to do.
//
// It only looks. Run makes a link and sockets of its own, which are gone when it returns, and
// sends packets only to probe.
package doctor

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"goipip/internal/resolver"
	"goipip/internal/tunnel"
	"goipip/internal/underlay"
	"goipip/rawsock"
)

// Status says how bad a finding is.
type Status uint8

// In this order, the worst is the greatest.
const (
	OK      Status = iota
	Warning        // a tunnel works, but not as well as it might, or not always
	Failure        // a tunnel does not work
)

// String returns "ok", "warning" or "failure".
func (s Status) String() string { return [...]string{"ok", "warning", "failure"}[s] }

// MarshalText is String, for JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Result is what a check has found.
type Result struct {
	Check  string `json:"check"`            // its name, see Checks
	Tunnel string `json:"tunnel,omitempty"` // the name of its link, or its ends; empty for the host
	Status Status `json:"status"`
	Saw    string `json:"saw"`
	Why    string `json:"why,omitempty"`  // that matters; empty with OK
	Cure   string `json:"cure,omitempty"` // what to do; empty where Commands say it all
	// Commands mend it, for root in this network namespace, where commands can.
	Commands []string `json:"commands,omitempty"`
}

// Worst returns the worst status of results.
func Worst(results []Result) (worst Status) {
	for _, r := range results {
		worst = max(worst, r.Status)
	}
	return worst
}

// Tunnel is a tunnel to examine: one that runs, or one that somebody wants.
type Tunnel struct {
	Config tunnel.Config
	// Running tells that it runs. What follows is known of a running tunnel only.
	Running        bool
	Index          int  // of the link
	Up             bool // the link is
	Away           bool // the link is in another network namespace
	MTU            int  // of the link, in bytes
	Sent, Received uint64
}

// Options says what to examine.
type Options struct {
	Tunnels     []Tunnel
	Descriptors error      // why this process may not open enough files; nil if it may
	Probe       netip.Addr // the remote end to send packets to; the zero Addr for none
}

// subject is a tunnel that is examined.
type subject struct {
	Tunnel
	label  string
	name   error         // why a name of its ends has no address; nil if all have
	path   underlay.Path // of its outer packets; of those without a local address if that is missing
	device link          // by which they leave; the zero link if not known
}

// exam is what checks share.
type exam struct {
	Options
	survey
	subjects []*subject
	inside   func() link       // see insideLink
	watcher  *underlay.Watcher // nil if the namespace cannot be watched
	rules    []ruleset
	rulesErr error
}

// check is one that is about a T.
type check[T any] struct {
	name string
	run  func(*exam, T) []Result
}

// host stands for this host, which needs no name.
type host struct{}

// The checks, in the order in which they are made. One that does not apply has no result.
var (
	hostChecks = []check[host]{
		{"tun", (*exam).tun},
		{"net-admin", (*exam).netAdmin},
		{"net-raw", (*exam).netRaw},
		{"user-namespace", (*exam).userNamespace},
		{"descriptors", (*exam).descriptors},
		{"bpf", (*exam).bpf},
		{"fast-path", (*exam).fastPath},
		{"module", (*exam).module},
		{"filter-protocol", (*exam).filterProtocol},
		{"filter-cost", (*exam).filterCost},
	}
	tunnelChecks = []check[*subject]{
		{"name", (*exam).name},
		{"pair", (*exam).pair},
		{"link", (*exam).link},
		{"address", (*exam).address},
		{"local", (*exam).local},
		{"remote", (*exam).remote},
		{"route", (*exam).route},
		{"loop", (*exam).loop},
		{"next-hop", (*exam).nextHop},
		{"mtu", (*exam).mtu},
		{"rp-filter", (*exam).rpFilter},
		{"forwarding", (*exam).forwarding},
		{"filter-input", (*exam).filterInput},
		{"filter-output", (*exam).filterOutput},
		{"filter-forward", (*exam).filterForward},
		{"silence", (*exam).silence},
	}
	deviceChecks = []check[link]{ // by which outer packets leave
		{"gro", (*exam).gro},
		{"segmentation", (*exam).segmentation},
	}
)

// lookupTimeout bounds the lookup of a name.
const lookupTimeout = 5 * time.Second

// Names of the checks of a probe.
const (
	checkProbe    = "probe"
	checkProbeMTU = "probe-mtu"
)

// Checks returns the names of all checks.
func Checks() []string {
	list := append(names(hostChecks), names(tunnelChecks)...)
	return append(append(list, names(deviceChecks)...), checkProbe, checkProbeMTU)
}

func names[T any](checks []check[T]) (list []string) {
	for _, c := range checks {
		list = append(list, c.name)
	}
	return list
}

// results makes one check.
func (c check[T]) results(e *exam, of T) []Result {
	list := c.run(e, of)
	for i := range list {
		list[i].Check = c.name
	}
	return list
}

// Run makes all checks, in the network namespace of the calling thread. ctx ends a probe, which
// takes three seconds at most.
func Run(ctx context.Context, o Options) []Result {
	e := &exam{Options: o, survey: newSurvey()}
	e.inside = sync.OnceValue(e.insideLink)
	watcher, err := underlay.Open(slog.New(slog.DiscardHandler))
	if err == nil {
		e.watcher = watcher
		defer watcher.Close()
	}
	e.readRules()
	for _, t := range o.Tunnels {
		e.subjects = append(e.subjects, e.newSubject(ctx, t))
	}
	var all []Result
	for _, c := range hostChecks {
		all = append(all, c.results(e, host{})...)
	}
	if len(e.subjects) == 0 { // look at the firewall all the same
		for _, c := range tunnelChecks {
			if c.name == "filter-input" || c.name == "filter-output" {
				all = append(all, c.results(e, &subject{})...)
			}
		}
	}
	var devices []link
	for _, s := range e.subjects {
		for _, c := range tunnelChecks {
			if s.name != nil && c.name != "name" {
				continue // a tunnel that does not know its ends
			}
			list := c.results(e, s)
			for i := range list {
				list[i].Tunnel = s.label
			}
			all = append(all, list...)
		}
		if s.device != (link{}) && !slices.Contains(devices, s.device) {
			devices = append(devices, s.device)
		}
	}
	for _, d := range devices {
		for _, c := range deviceChecks {
			all = append(all, c.results(e, d)...)
		}
	}
	probed := func(s *subject) bool { return o.Probe.IsValid() && s.Config.Remote == o.Probe }
	if i := slices.IndexFunc(e.subjects, probed); i >= 0 {
		all = append(all, e.probe(ctx, e.subjects[i])...)
	}
	return all
}

func (e *exam) newSubject(ctx context.Context, t Tunnel) *subject {
	s := &subject{Tunnel: t, label: t.Config.Name}
	if e.watcher != nil {
		s.name = e.findEnds(ctx, &s.Config)
	}
	t = s.Tunnel
	if s.label == "" {
		s.label = t.Config.LocalText() + " to " + t.Config.RemoteText()
	}
	switch {
	case e.watcher == nil:
		s.path.Reason = "nothing is known of the network"
		return s
	case s.name != nil:
		return s
	}
	s.path = e.path(t.Config)
	if s.path.LocalMissing {
		// The kernel has no route from an address that is not here. Where would it lead from another?
		c := t.Config
		c.Local = netip.Addr{}
		s.path = e.path(c)
		s.path.LocalMissing = true
	}
	if l, ok := e.watcher.Link(s.path.Device); ok {
		s.device = link{l.Index, l.Name}
	}
	return s
}

// findEnds puts the addresses into c that its names stand for, as far as they are missing.
func (e *exam) findEnds(ctx context.Context, c *tunnel.Config) error {
	if c.LocalDevice != "" && !c.Local.IsValid() {
		var err error
		if c.Local, err = e.watcher.FirstAddress(c.LocalDevice); err != nil {
			return fmt.Errorf("%s has no address: %w", c.LocalDevice, err)
		}
	}
	if c.RemoteName != "" && !c.Remote.IsValid() {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		a, err := resolver.New().Lookup(ctx, c.RemoteName)
		if err != nil {
			return fmt.Errorf("%s has no address: %w", c.RemoteName, err)
		}
		c.Remote = a.Addrs[0]
	}
	return nil
}

// path returns the path of outer packets as a tunnel would see it.
func (e *exam) path(c tunnel.Config) underlay.Path {
	var p pathHolder
	e.watcher.Follow(underlay.Query{
		Local:   c.Local,
		Remote:  c.Remote,
		Device:  c.Device,
		TOS:     c.RouteTOS(),
		Mark:    c.Mark,
		NextHop: true,
		Probe: func(device int) (int, netip.Addr, error) {
			prober, err := rawsock.NewProber()
			if err != nil {
				return 0, netip.Addr{}, err
			}
			defer prober.Close()
			return prober.Path(rawsock.Route{Local: c.Local, Remote: c.Remote, Device: device, TOS: c.RouteTOS(), Mark: c.Mark})
		},
	}, &p).Close()
	return *p.path.Load()
}

// pathHolder is an underlay.Follower that keeps the path.
type pathHolder struct{ path atomic.Pointer[underlay.Path] }

func (p *pathHolder) PathChanged(now underlay.Path) { p.path.Store(&now) }
func (*pathHolder) LinkChanged(underlay.Link, bool) {}
func (*pathHolder) Sent() uint64                    { return 0 }
func (*pathHolder) Settle()                         {}

// good is the result of a check that finds nothing wrong.
func good(format string, args ...any) []Result {
	return []Result{{Status: OK, Saw: fmt.Sprintf(format, args...)}}
}
