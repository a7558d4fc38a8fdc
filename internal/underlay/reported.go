package underlay

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// reportedMTU is a path MTU that a router reported. The kernel records it for the route
// that a socket without a device takes; for packets that leave by a configured device,
// the Following does (O6). It corresponds to an exception of a next hop in the kernel
// (struct fib_nh_exception), and has the same lifetime.
type reportedMTU struct {
	mtu     int // in bytes
	locked  bool
	until   time.Time
	device  int
	gateway netip.Addr
}

// limits are the parameters of the kernel's rules for path MTUs, and the time.
type limits struct {
	minimum int           // net.ipv4.route.min_pmtu, in bytes
	expires time.Duration // net.ipv4.route.mtu_expires
	now     time.Time
}

// report returns r, which may be nil, updated by a router's report about path p. As in
// __ip_rt_update_pmtu (net/ipv4/route.c) it ignores an increase, a repetition unless the
// record expires soon, and any report about a path on which routers fragment.
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

// about reports whether r applies to a path and has not expired.
func (r *reportedMTU) about(p *Path, now time.Time) bool {
	return r != nil && now.Before(r.until) && r.device == p.Device && r.gateway == p.Gateway
}

// limits returns the current limits.
func (k *kernel) limits() limits {
	return limits{
		minimum: k.minPMTU.value(),
		expires: time.Duration(k.mtuExpires.value()) * time.Second,
		now:     time.Now(),
	}
}

// sysctl is a number below net.ipv4.route. It belongs to the network namespace of the
// thread that opened it, whichever thread reads it (proc_sys_read in
// fs/proc/proc_sysctl.c).
type sysctl struct {
	file    *os.File // nil if this namespace has no such file
	initial int      // the kernel's default
}

func openSysctl(name string, initial int) sysctl {
	file, err := os.Open("/proc/sys/net/ipv4/route/" + name)
	if err != nil {
		file = nil // Linux before 5.18 has it in the initial namespace only
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
