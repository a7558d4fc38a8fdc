package daemon

import (
	"log/slog"
	"sync"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/stats"
)

// sampleInterval is how often the counters of all tunnels are read, for rates and for the
// time of the last packet: the packet loops do not look at a clock.
const sampleInterval = time.Second

// A remote end is silent that has sent nothing for so long, and for so many intervals in
// which packets were sent to it.
const (
	silence    = 30 * time.Second
	unanswered = 5
)

// sampler reads the counters of a daemon's tunnels.
type sampler struct {
	mu   sync.Mutex // for the samples of all members
	stop chan struct{}
	done sync.WaitGroup
}

// sample is what is known of a tunnel from its counters.
type sample struct {
	at     time.Time // when it was read last
	tx, rx flow

	silent     bool      // the remote end is, as logged
	asking     time.Time // since when packets have been sent and none came
	unanswered int       // the intervals since then in which packets were sent
	lookedUp   time.Time // when a silent remote end's name was; zero while it is not silent
}

// flow is one direction of a sample.
type flow struct {
	packets, bytes        uint64 // as read last
	packetRate, bytesRate uint64 // over the last interval
	last                  time.Time
}

func (f *flow) add(d stats.Direction, now time.Time, elapsed time.Duration) (grew bool) {
	grew = d.Packets != f.packets
	if elapsed > 0 {
		f.packetRate = uint64(float64(d.Packets-f.packets) / elapsed.Seconds())
		f.bytesRate = uint64(float64(d.Bytes-f.bytes) / elapsed.Seconds())
	}
	f.packets, f.bytes = d.Packets, d.Bytes
	if grew {
		f.last = now
	}
	return grew
}

func (f *flow) traffic(d stats.Direction) control.Traffic {
	t := control.Traffic{
		Packets: d.Packets, Bytes: d.Bytes,
		PacketRate: f.packetRate, ByteRate: f.bytesRate,
		Last: f.last,
	}
	if d.Packets != f.packets {
		t.Last = time.Now()
	}
	for reason, n := range d.Drops.All() {
		if t.Drops == nil {
			t.Drops = map[string]uint64{}
		}
		t.Drops[reason.String()] = n
	}
	return t
}

// start samples d's tunnels until close.
func (s *sampler) start(d *Daemon) {
	s.stop = make(chan struct{})
	s.done.Go(func() {
		tick := time.NewTicker(sampleInterval)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case now := <-tick.C:
				for _, m := range d.running() {
					if s.take(d, m, now) && d.scraped.Load() {
						m.tunnel.ReadQueueDrops()
					}
				}
			}
		}
	})
}

func (s *sampler) close() {
	close(s.stop)
	s.done.Wait()
}

// take takes a sample of m, and reports whether packets were sent since the last one.
func (s *sampler) take(d *Daemon, m *member, now time.Time) (sent bool) {
	counted := m.tunnel.Passed()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &m.sample
	var elapsed time.Duration
	if !p.at.IsZero() {
		elapsed = now.Sub(p.at)
	}
	p.at = now
	sent, came := p.tx.add(counted.TX, now, elapsed), p.rx.add(counted.RX, now, elapsed)
	m.tell(p.judge(sent, came, now), d.log)
	switch silent := p.silent || !m.tunnel.SilentSince().IsZero(); {
	case !silent:
		p.lookedUp = time.Time{}
	case now.Sub(p.lookedUp) >= silence:
		p.lookedUp = now
		d.lookUpNames(m) // which may have another address by now
	}
	return sent
}

// news is what a sample says of a remote end.
type news uint8

const (
	nothing news = iota
	fellSilent
	cameBack
)

// judge takes note of whether packets were sent and came in an interval that ends now.
func (p *sample) judge(sent, came bool, now time.Time) news {
	switch {
	case came:
		back := p.silent
		p.unanswered, p.silent = 0, false
		if back {
			return cameBack
		}
		return nothing
	case !sent || p.silent:
		return nothing
	case p.unanswered == 0:
		p.asking = now
	}
	p.unanswered++
	p.silent = p.unanswered >= unanswered && now.Sub(p.asking) >= silence
	if p.silent {
		return fellSilent
	}
	return nothing
}

// tell logs news, unless the tunnel's keepalive has its own.
func (m *member) tell(n news, log *slog.Logger) {
	if n == nothing {
		return
	}
	c := m.tunnel.State().Config
	if c.Keepalive != 0 {
		return
	}
	switch n {
	case fellSilent:
		log.Warn("nothing comes from the remote end, although packets are sent there: is it up, and does a firewall drop protocol 4?",
			"tunnel", m.name, "remote", c.Remote)
	case cameBack:
		log.Info("packets come from the remote end again", "tunnel", m.name, "remote", c.Remote)
	}
}

// traffic returns what is known of a tunnel, whose counters are given.
func (s *sampler) traffic(m *member, counted stats.Snapshot) (tx, rx control.Traffic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return m.sample.tx.traffic(counted.TX), m.sample.rx.traffic(counted.RX)
}
