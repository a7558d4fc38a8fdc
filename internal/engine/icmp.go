package engine

import (
	"net/netip"
	"time"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/time/rate"
)

// errorsPerSecond bounds the ICMP errors that an Engine looks at, whatever their number:
// as many as a host sends by itself (net.ipv4.icmp_msgs_per_sec). The kernel drops what
// the socket does not hold.
const errorsPerSecond = 1000

// hearICMP handles the ICMP errors about the tunnels' packets until the Engine is closed.
func (e *Engine) hearICMP() {
	limit := rate.NewLimiter(errorsPerSecond, 2*rawsock.ErrorBatch)
	writer := tun.NewWriter()
	heard := 0
	handle := func(err rawsock.ICMPError) {
		heard++
		if t := e.table.lookUp(keyOf(err.Pair)); t != nil {
			t.icmpReceived(err, writer)
		}
		e.handled.Add(1)
	}
	for {
		heard = 0
		if err := e.errors.ReadErrors(handle); err != nil {
			e.fail(err)
			return
		}
		if heard == 0 { // a flood of malformed messages
			heard = rawsock.ErrorBatch
		}
		if limit.WaitN(e.ctx, min(heard, limit.Burst())) != nil {
			return
		}
	}
}

// icmpReceived handles one ICMP error (E). Redirects and the path MTU the kernel has
// applied by itself. Errors to be relayed are written by w.
func (t *Tunnel) icmpReceived(e rawsock.ICMPError, w *tun.Writer) {
	t.icmp.Add(1)
	plan := t.plan.Load()
	relay := plan.RelayICMP && t.wentThrough(plan, e.Inner)
	switch {
	case e.Type == packet.ICMPUnreachable && e.Code == packet.ICMPCodeFragNeeded:
		// With RFC 2003 a sender that wants DF hears of the MTU at once, or else with its
		// next packet that is too long (T7).
		mtu := t.owner.PathMTUReported(e.MTU)
		if relay && e.Inner.DF() {
			t.relay(w, e, packet.ICMPCodeFragNeeded, mtu-plan.encap.HdrLen())
		}
	case relay:
		if code, ok := relayedCode(e); ok {
			t.relay(w, e, code, 0)
		}
	case isSoftError(e, plan.Outer.TTL == 0):
		t.soft.note(time.Now())
	}
}

// wentThrough reports whether a packet like inner, which must be quoted as far as 8
// bytes behind its header, would leave by the tunnel's link. An error that quotes
// another is forged, or about a route that is gone: its sender hears nothing at once.
func (t *Tunnel) wentThrough(plan *plan, inner packet.IPv4) bool {
	return len(inner) >= packet.IPv4HdrLen+8 && !plan.Away &&
		t.owner.LeadsIn(netip.AddrFrom4(inner.Destination()))
}

// relay tells the sender of the inner packet.
func (t *Tunnel) relay(w *tun.Writer, e rawsock.ICMPError, code uint8, mtu int) {
	var b [encap.MaxICMPLen]byte
	message := encap.ICMPError(b[:], e.Inner, packet.ICMPUnreachable, code, mtu)
	if message != nil && t.engine.replies.allow(message) {
		// A link that is down or gone shows elsewhere.
		_ = w.Write(t.device.Queues()[0], packet.VNetHdr{}, [][]byte{message})
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

// icmpLimit bounds the ICMP errors that an Engine sends (G7): a thousand a second,
// as net.ipv4.icmp_msgs_per_sec does, and a tenth of that to any one sender, so
// that a flood from one sender does not silence the others.
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
