package engine

import (
	"context"
	"time"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/rawsock"

	"golang.org/x/time/rate"
)

// Limits of the ICMP errors that a tunnel handles: a flood costs no more than this. What
// the guard has no room for meanwhile, the kernel drops.
const (
	errorsPerSecond = 1000
	errorsBurst     = 64 // at least rawsock.ErrorBatch
)

// readErrors handles the ICMP errors that the guard hears of, until ctx is done or the
// guard closed.
func (t *Tunnel) readErrors(ctx context.Context) {
	limit := rate.NewLimiter(errorsPerSecond, errorsBurst)
	n := 0
	handle := func(e rawsock.ICMPError) {
		t.icmpReceived(e)
		t.heard.Add(1)
		n++
	}
	for t.guard.ReadErrors(handle) == nil && limit.WaitN(ctx, n) == nil {
		n = 0
	}
}

// icmpReceived handles an ICMP error about one of the tunnel's packets (E). Redirects
// and path MTUs have been taken over by the kernel already.
func (t *Tunnel) icmpReceived(e rawsock.ICMPError) {
	switch {
	case e.Type == packet.ICMPUnreachable && e.Code == packet.ICMPCodeFragNeeded:
		t.fragNeeded(e)
	case t.cfg.RelayICMP:
		if code, ok := relayedCode(e); ok {
			t.relay(e, code, 0)
		}
	case isSoftError(e, t.cfg.TTL == 0):
		t.tx.soft.note(time.Now())
	}
}

// fragNeeded takes note of a shorter path. A sender that wants DF hears of the MTU
// that the path has for it now: with RFC 2003 at once, or else with the next packet
// that is too long (T7).
func (t *Tunnel) fragNeeded(e rawsock.ICMPError) {
	defer wake(t.doubt)
	if t.cfg.Device == "" && !t.cfg.RelayICMP {
		return // the kernel keeps what it says
	}
	path, limits := *t.tx.underlay.Load(), t.host.limits()
	if t.cfg.Device != "" {
		t.reported.Store(t.reported.Load().report(e.MTU, path, limits))
	}
	if t.cfg.RelayICMP && len(e.Inner) >= packet.IPv4HdrLen && e.Inner.DF() {
		mtu := min(max(e.MTU, limits.minimum), path.mtu)
		t.relay(e, packet.ICMPCodeFragNeeded, mtu-encap.HdrLen)
	}
}

// relay tells the sender of the inner packet, of which the ICMP error must quote
// enough: the header, and 8 bytes more.
func (t *Tunnel) relay(e rawsock.ICMPError, code uint8, mtu int) {
	if len(e.Inner) < packet.IPv4HdrLen+8 {
		return
	}
	var b [encap.MaxICMPLen]byte
	message := encap.ICMPError(b[:], e.Inner, packet.ICMPUnreachable, code, mtu)
	if message != nil && t.tx.limit.allow(message) {
		// A link that is down or gone shows elsewhere.
		_ = t.relayed.Write(packet.VNetHdr{}, [][]byte{message})
	}
}

// relayedCode returns the code of "destination unreachable" that RFC 2003 §4 makes
// of an ICMP error other than 3/4, and false for one that stays here. What later RFCs added to
// the codes counts as an unreachable host.
func relayedCode(e rawsock.ICMPError) (code uint8, ok bool) {
	switch e.Type {
	case packet.ICMPUnreachable:
		switch e.Code {
		case packet.ICMPCodeNet:
			return packet.ICMPCodeNet, true
		case packet.ICMPCodePort, packet.ICMPCodeSrcRoute:
			return 0, false
		}
		return packet.ICMPCodeHost, true
	case packet.ICMPTimeExceeded:
		return packet.ICMPCodeHost, e.Code == packet.ICMPCodeTTL
	}
	return 0, false
}

// icmpLimit bounds the ICMP errors that a tunnel sends (G7): a thousand a second,
// as net.ipv4.icmp_msgs_per_sec does, and a tenth of that to any one sender, so
// that one who floods does not keep the others from hearing.
type icmpLimit struct {
	all *rate.Limiter
	to  [256]*rate.Limiter // by a hash of the address
}

func newICMPLimit() *icmpLimit {
	l := &icmpLimit{all: rate.NewLimiter(1000, 1000)}
	for i := range l.to {
		l.to[i] = rate.NewLimiter(100, 50)
	}
	return l
}

// allow reports whether message may be sent, and counts it if so.
func (l *icmpLimit) allow(message packet.IPv4) bool {
	a := message.Destination()
	return l.to[a[0]^a[1]^a[2]^a[3]].Allow() && l.all.Allow()
}
