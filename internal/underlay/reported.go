package underlay

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// reportedMTU is a path MTU that a router reported. The kernel keeps it itself, but
// for the route that a socket without a device, TOS and mark takes; a Following remembers it
// where packets leave by another (O4, O6, O10). It is what the kernel calls an exception
// of a next hop (struct fib_nh_exception), and goes when that does.
type reportedMTU struct {
	mtu     int // in bytes
	locked  bool
	until   time.Time
	device  int
	gateway netip.Addr
}

// limits are what the kernel's rules for path MTUs depend on.
type limits struct {
	minimum int // of what a router may report, in bytes: net.ipv4.route.min_pmtu
	expires time.Duration
	now     time.Time
}

// report adds what a router says of path p to r, which may be nil. As in
// __ip_rt_update_pmtu (net/ipv4/route.c) an increase is ignored, as is what is known
// and will be for a while, and all of a path on which the routers fragment.
func (r *reportedMTU) report(mtu int, p Path, l limits) *reportedMTU {
	r.limit(&p, l.now)
	if p.Locked || mtu > p.MTU {
		return r
	}
	next := &reportedMTU{mtu: mtu, until: l.now.Add(l.expires), device: p.Device, gateway: p.Gateway}
	if mtu < l.minimum {
		next.mtu, next.locked = min(p.MTU, l.minimum), true
	}
	if r.about(&p, l.now) && r.mtu == next.mtu && !next.locked && r.until.Sub(l.now) > l.expires/2 {
		return r
	}
	return next
}

// limit applies r, which may be nil, to a path.
func (r *reportedMTU) limit(p *Path, now time.Time) {
	if !r.about(p, now) {
		return
	}
	p.Reported = r.mtu
	if r.mtu < p.MTU {
		p.MTU, p.Locked = r.mtu, r.locked
	}
}

// about reports whether r is about a path, and still valid.
func (r *reportedMTU) about(p *Path, now time.Time) bool {
	return r != nil && now.Before(r.until) && r.device == p.Device && r.gateway == p.Gateway
}

// limits reads them now.
func (k *kernel) limits() limits {
	return limits{
		minimum: k.minPMTU.value(),
		expires: time.Duration(k.mtuExpires.value()) * time.Second,
		now:     time.Now(),
	}
}

// sysctl is a number below net.ipv4.route of the network namespace of the thread
// that opened it, whichever thread reads it (proc_sys_read in fs/proc/proc_sysctl.c).
type sysctl struct {
	file    *os.File // nil where the kernel does not show it here
	initial int      // as the kernel has it from the start
}

func openSysctl(name string, initial int) sysctl {
	file, err := os.Open("/proc/sys/net/ipv4/route/" + name)
	if err != nil {
		file = nil // before Linux 5.18, which has one for all namespaces
	}
	return sysctl{file, initial}
}

func (s sysctl) value() int {
	if s.file == nil {
		return s.initial
	}
	var b [32]byte
	n, _ := s.file.ReadAt(b[:], 0)
	v, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return s.initial
	}
	return v
}

func (s sysctl) close() {
	if s.file != nil {
		s.file.Close()
	}
}
