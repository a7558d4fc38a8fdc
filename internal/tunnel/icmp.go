package engine

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/time/rate"
)

// errorsPerSecond bounds the ICMP errors that a tunnel looks at, whatever their number:
// as many as a host sends by itself (net.ipv4.icmp_msgs_per_sec). The kernel drops what
// the socket does not hold.
const errorsPerSecond = 1000

// icmpErrors is the state of hearICMP.
type icmpErrors struct {
	heard   int           // since the last wait
	handled atomic.Uint64 // of all time
	replies *tun.Writer   // for errors relayed to inner senders
}

// hearICMP handles the ICMP errors about the tunnel's packets until the ErrorSocket is closed.
func (t *Tunnel) hearICMP(ctx context.Context) error {
	limit := rate.NewLimiter(errorsPerSecond, 2*rawsock.ErrorBatch)
	for {
		t.icmp.heard = 0
		if err := t.errors.ReadErrors(t.icmpReceived); err != nil {
			return err
		}
		if t.icmp.heard == 0 { // a flood of malformed messages
			t.icmp.heard = rawsock.ErrorBatch
		}
		if err := limit.WaitN(ctx, min(t.icmp.heard, limit.Burst())); err != nil {
			return err
		}
	}
}

// icmpReceived handles one ICMP error (E). Redirects and the path MTU the kernel has
// applied by itself.
func (t *Tunnel) icmpReceived(e rawsock.ICMPError) {
	t.icmp.heard++
	defer t.icmp.handled.Add(1)
	relay := t.cfg.RelayICMP && t.wentThrough(e.Inner)
	switch {
	case e.Type == packet.ICMPUnreachable && e.Code == packet.ICMPCodeFragNeeded:
		t.fragNeeded(e, relay)
	case relay:
		if code, ok := relayedCode(e); ok {
			t.relay(e, code, 0)
		}
	case isSoftError(e, t.cfg.TTL == 0):
		t.tx.soft.note(time.Now())
	}
}

// wentThrough reports whether a packet like inner, which must be quoted as far as 8
// bytes behind its header, would leave by the tunnel's link. An error that quotes
// another is forged, or about a route that is gone: its sender hears nothing at once.
func (t *Tunnel) wentThrough(inner packet.IPv4) bool {
	return len(inner) >= packet.IPv4HdrLen+8 &&
		t.way.situation.Load().here &&
		t.host.LeadsInto(netip.AddrFrom4(inner.Destination()), t.device.Index())
}

// fragNeeded takes note of a shorter path. A sender that wants DF hears of the MTU
// that the path has for it now: with RFC 2003 at once, or else with the next packet
// that is too long (T7).
func (t *Tunnel) fragNeeded(e rawsock.ICMPError, relay bool) {
	t.way.following.Report(e.MTU)
	if relay && e.Inner.DF() {
		mtu := t.way.following.LimitReport(e.MTU)
		t.relay(e, packet.ICMPCodeFragNeeded, mtu-encap.HdrLen)
	}
}

// relay tells the sender of the inner packet.
func (t *Tunnel) relay(e rawsock.ICMPError, code uint8, mtu int) {
	var b [encap.MaxICMPLen]byte
	message := encap.ICMPError(b[:], e.Inner, packet.ICMPUnreachable, code, mtu)
	if message != nil && t.tx.limit.allow(message) {
		// A link that is down or gone shows elsewhere.
		_ = t.icmp.replies.Write(packet.VNetHdr{}, [][]byte{message})
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
