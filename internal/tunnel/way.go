package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"goipip/encap"
	"goipip/internal/engine"
	"goipip/internal/underlay"
	"goipip/rawsock"

	"golang.org/x/time/rate"
)

// way is what a tunnel with certain settings knows of its path and does about it. It is the
// underlay's Follower: the Watcher's goroutines call its methods. A change of the
// settings makes another.
type way struct {
	*Tunnel
	cfg       Config
	following *underlay.Following
	keepalive *engine.Keepalive // nil without

	// For the methods that are called one at a time.
	latest underlay.Path
	here   bool         // the link is in the namespace that it was made in
	up     bool         // the link is
	wired  bool         // the link is up, and has its carrier
	hop    *rawsock.Hop // where the packet socket sends; nil for the raw socket
	// rawReason is why the raw socket sends, as logged.
	rawReason string
	bound     int // index of the device that packets leave by, as known last

	planning  sync.Mutex
	next      *engine.Plan // the latest
	live      bool         // the loops go by it
	fast      fastState
	situation atomic.Pointer[situation] // next is made of it; written under planning

	// settling is held by what may take a moment: settle, and a change of the link.
	settling   sync.Mutex
	trouble    string // why no packet leaves, as logged
	troubleLog *rate.Limiter
	warned     warnings // as logged
}

// situation is where the tunnel stands.
type situation struct {
	path  underlay.Path
	here  bool
	up    bool
	wired bool
	loop  bool // the path leads into the tunnel itself (T4)
}

func newWay(t *Tunnel, cfg Config, bound int, noFastPath error) *way {
	w := &way{Tunnel: t, cfg: cfg, here: true, bound: bound, troubleLog: rate.NewLimiter(logPerSecond, logBurst)}
	w.fast.cannot = noFastPath
	if cfg.Keepalive != 0 {
		w.keepalive = t.alive.echo
	}
	if before := t.way.Load(); before != nil {
		w.here, w.up, w.wired, w.trouble, w.troubleLog, w.warned = before.here, before.up, before.wired, before.trouble, before.troubleLog, before.warned
	}
	return w
}

// follow begins to follow the path, and returns when the loops go by it.
func (w *way) follow() error {
	w.following = w.host.underlay.Follow(w.query(), w)
	w.Tunnel.way.Store(w)
	w.planning.Lock()
	first := w.next
	w.planning.Unlock()
	if err := w.begin(*first); err != nil { // which may take a moment
		return err
	}
	w.planning.Lock()
	defer w.planning.Unlock()
	w.live = true
	if w.next != first {
		err := w.packets.Load().SetPlan(*w.next)
		if err != nil {
			return err
		}
	}
	w.chooseFast()
	return nil
}

// begin has the loops go by the first Plan of w.
func (w *way) begin(first engine.Plan) error {
	if packets := w.packets.Load(); packets != nil {
		return packets.SetPlan(first)
	}
	packets, err := w.engine.Add(engine.TunnelConfig{Device: w.device, MTU: w.MTU(), Plan: first, Owner: w.Tunnel, Log: w.log})
	if err != nil {
		return err
	}
	w.packets.Store(packets)
	return nil
}

// PathChanged has the loops go by p from their next batch on.
func (w *way) PathChanged(p underlay.Path) {
	w.latest = p
	if p.Bound != 0 {
		w.bound = p.Bound
	}
	w.apply()
}

func (w *way) apply() {
	s := &situation{path: w.latest, here: w.here, up: w.up, wired: w.wired}
	s.loop = w.here && s.path.Device == w.device.Index()
	plan := w.plan(s)
	w.planning.Lock()
	defer w.planning.Unlock()
	w.situation.Store(s)
	w.next = &plan
	if w.live {
		// Between the same addresses it does not fail.
		_ = w.packets.Load().SetPlan(plan)
		w.chooseFast()
	}
}

// LinkChanged follows the tunnel's own link, as soon as that is up. One that was moved to
// another namespace keeps the MTU that it had last.
func (w *way) LinkChanged(l underlay.Link, here bool) {
	mtu := w.MTU()
	if l.Up {
		w.setMTU(l.MTU)
	}
	changed := w.here != here || w.up != l.Up || w.wired != l.Carrier
	if changed || w.MTU() != mtu && w.cfg.ClampMSS == ClampAuto {
		w.here, w.up, w.wired = here, l.Up, l.Carrier
		w.apply()
	}
}

// Sent returns how many packets were to be sent, and also how many the kernel received by
// itself: the programs of others that would miss those are to be looked for too.
func (w *way) Sent() (n uint64) {
	if packets := w.packets.Load(); packets != nil {
		n = packets.Sent()
	}
	fast := w.fastStats()
	return n + fast.TX.Packets + fast.RX.Packets
}

// plan is what w's settings and path come to.
func (w *way) plan(s *situation) engine.Plan {
	c := &w.cfg
	route := rawsock.Route{Remote: c.Remote, Device: s.path.Bound, TOS: c.RouteTOS(), Mark: c.Mark, Hop: w.chooseHop(s)}
	if c.Device != "" && s.path.Bound == 0 {
		route.Device = w.bound // which is gone: packets must not leave by another
	}
	return engine.Plan{
		Outer: encap.Outer{
			Format:     encap.IPIP,
			Local:      s.path.Source,
			AnyLocal:   c.AnyLocal(),
			Remote:     c.Remote,
			TTL:        c.TTL,
			TOS:        c.TOS,
			InheritTOS: c.InheritTOS,
			NoPMTUDisc: c.NoPMTUDisc,
		},
		Path: engine.Path{
			MTU:          s.path.MTU,
			Locked:       s.path.Locked,
			Loop:         s.loop,
			LocalMissing: s.path.LocalMissing || !s.path.Source.IsValid(),
			Reported:     s.path.Reported,
		},
		Route:     route,
		Away:      !w.here,
		RelayICMP: c.RelayICMP,
		MaxMSS:    w.maxMSS(&s.path),
		Keepalive: w.keepalive,
	}
}

// query is what the tunnel asks the underlay.
func (w *way) query() underlay.Query {
	return underlay.Query{
		Local:   w.cfg.Local,
		Remote:  w.cfg.Remote,
		Device:  w.cfg.Device,
		TOS:     w.cfg.RouteTOS(),
		Mark:    w.cfg.Mark,
		Link:    w.device.Index(),
		NextHop: w.cfg.Transmit != TransmitRaw || w.cfg.Fast != FastOff,
		Probe:   w.probe,

		Observers: w.cfg.Fast != FastOff,
	}
}

// probe asks the kernel for the MTU in bytes and the source of the path.
func (w *way) probe(device int) (mtu int, source netip.Addr, err error) {
	return w.host.probe(rawsock.Route{
		Local: w.cfg.Local, Remote: w.cfg.Remote, Device: device, TOS: w.cfg.RouteTOS(), Mark: w.cfg.Mark,
	})
}
