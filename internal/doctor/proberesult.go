package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"goipip/encap"
	"goipip/internal/packet"
)

// result says what came back.
func (p *probe) result() Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	peerTunnel := fmt.Sprintf("at the other end: goipip tunnel add NAME mode ipip local %v remote %v, or the same with ip", p.remote, p.local)
	worst := slices.IndexFunc(p.errors, func(e icmpError) bool { return e.mtu == 0 })
	inner, outer, pinged := p.answers[seqInner], p.answers[seqOuter], p.answers[seqPlain] != 0
	switch {
	case worst >= 0 && (inner != 0 || outer != 0):
		e := p.errors[worst]
		return Result{
			Status: Warning, Saw: fmt.Sprintf("%v answers within the tunnel, and %v sends ICMP %d/%d as well", p.remote, e.from, e.kind, e.code),
			Why:  "two programs there handle ipip packets, and senders take the error for their own",
			Cure: "run goipip doctor at the other end: the check module names what is in the way",
		}
	case inner != 0:
		return Result{Saw: fmt.Sprintf("%v answers within the tunnel", p.inner[1])}
	case outer != 0 && p.knowsInner():
		return Result{
			Status: Warning, Saw: fmt.Sprintf("packets of protocol 4 arrive at %v, but %v within the tunnel does not answer", p.remote, p.inner[1]),
			Why:  "the inner addresses or routes at both ends do not fit each other, or a firewall there drops what comes out of the tunnel",
			Cure: fmt.Sprintf("at the other end: ip addr add %v peer %v dev NAME, and look for rp_filter and firewall rules of that link", p.inner[1], p.inner[0]),
		}
	case outer != 0:
		return Result{Saw: fmt.Sprintf("packets of protocol 4 arrive at %v, which answers", p.remote)}
	case worst >= 0:
		return p.errorResult(p.errors[worst], peerTunnel)
	case pinged:
		return Result{
			Status: Warning, Saw: fmt.Sprintf("%v answers pings, but nothing of protocol 4", p.remote),
			Why: "a firewall at the other end or on the way drops protocol 4, as clouds do unless told otherwise, " +
				"or the other end has goipip, but no tunnel for these addresses",
			Cure: "let protocol 4 pass there (nft: ip protocol 4 accept; security groups: a rule for protocol 4, not 94); " + peerTunnel,
		}
	}
	return Result{
		Status: Warning, Saw: fmt.Sprintf("%v answers neither pings nor protocol 4", p.remote),
		Why:  "it is down, or not reached, or drops both",
		Cure: fmt.Sprintf("look whether %v is up, and where packets stop: traceroute %[1]v", p.remote),
	}
}

// errorResult is the result for an ICMP error and no answer.
func (p *probe) errorResult(e icmpError, peerTunnel string) Result {
	r := Result{Status: Failure, Why: "no packet of the tunnel arrives"}
	switch {
	case e.kind == packet.ICMPUnreachable && slices.Contains(prohibited, e.code):
		r.Saw = fmt.Sprintf("%v drops protocol 4 by a rule (ICMP 3/%d)", e.from, e.code)
		r.Cure = fmt.Sprintf("let protocol 4 from %v pass at %v (nft: ip protocol 4 accept)", p.local, e.from)
	case e.kind == packet.ICMPUnreachable && e.code == codeProtocol:
		r.Saw = fmt.Sprintf("%v is reached, and does not speak ipip (ICMP 3/2)", e.from)
		r.Cure = "start the tunnel there, " + peerTunnel
	case e.kind == packet.ICMPUnreachable && e.code == packet.ICMPCodePort:
		r.Saw = fmt.Sprintf("%v speaks ipip, but has no tunnel to %v, or its firewall rejects protocol 4 (ICMP 3/3)", e.from, p.local)
		r.Cure = "make the tunnel there, " + peerTunnel
	case e.kind == packet.ICMPUnreachable:
		r.Saw = fmt.Sprintf("%v does not reach %v (ICMP 3/%d)", e.from, p.remote, e.code)
		r.Cure = fmt.Sprintf("look at the routes of %v, and whether %v is up", e.from, p.remote)
	case e.kind == packet.ICMPTimeExceeded:
		r.Saw = fmt.Sprintf("at %v packets have passed too many routers (ICMP %d/%d)", e.from, e.kind, e.code)
		r.Cure = fmt.Sprintf("look for routes that go round: traceroute %v", p.remote)
	default:
		r.Saw = fmt.Sprintf("%v sends ICMP %d/%d about protocol 4", e.from, e.kind, e.code)
		r.Cure = "look at that host's log"
	}
	return r
}

// probeSizes are path MTUs in use, in bytes.
var probeSizes = []int{9000, 8000, 4352, 2002, 1500, 1492, 1480, 1472, 1460, 1450, 1440, 1420, 1400, 1380, 1350, 1300, 1280, 1200, 1006, 576}

// searchMTU sends requests of several sizes, the longest as long as the tunnel's packets become, and
// says which arrive.
func (p *probe) searchMTU(ctx context.Context) Result {
	s := p.subject
	most := min(s.path.MTU, s.path.DeviceMTU) - encap.IPIP.HdrLen
	wanted := cmp.Or(s.MTU, s.Config.MTU, most)
	wanted = min(wanted, most) + encap.IPIP.HdrLen // the rest is what the check mtu is about
	sizes := []int{wanted, wanted}
	for _, n := range probeSizes {
		if n < wanted {
			sizes = append(sizes, n)
		}
	}
	inner := p.inner
	if p.best() == seqOuter {
		inner = [2]netip.Addr{p.local, p.remote}
	}
	r := Result{Check: checkProbeMTU}
	for _, n := range sizes {
		if err := p.request(n, inner, n-encap.IPIP.HdrLen); err != nil {
			r.Status, r.Saw, r.Why = Warning, fmt.Sprintf("a packet of %d bytes is not sent: %v", n, err), "long packets do not leave"
			return r
		}
	}
	if p.wait(ctx, probeMTUWait, func() bool { return p.answers[wanted] != 0 }) {
		r.Saw = fmt.Sprintf("packets of %d bytes arrive, %d within the tunnel", wanted, wanted-encap.IPIP.HdrLen)
		return r
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	longest := 0
	for _, n := range sizes {
		if p.answers[n] != 0 {
			longest = max(longest, n)
		}
	}
	fits := longest - encap.IPIP.HdrLen
	if i := slices.IndexFunc(p.errors, func(e icmpError) bool { return e.mtu != 0 }); i >= 0 {
		r.Saw = fmt.Sprintf("%v takes packets of up to %d bytes, and says so: the tunnel follows", p.errors[i].from, p.errors[i].mtu)
		return r
	}
	r.Status = Warning
	r.Saw = fmt.Sprintf("packets of %d bytes arrive, and those of %d vanish without an ICMP error", longest, wanted)
	r.Why = "long packets vanish: connections open, and hang when data flows"
	r.Cure = fmt.Sprintf("--mtu %d, or let ICMP 3/4 pass on the way", fits)
	if longest == 0 {
		r.Saw = fmt.Sprintf("packets of %d bytes and less vanish without an ICMP error", sizes[len(sizes)-1])
		r.Cure = "let ICMP 3/4 pass on the way, and look for what drops long packets"
	} else if s.here() {
		r.Cure = "lower the MTU, or let ICMP 3/4 pass on the way"
		r.Commands = []string{setMTU(s.Config.Name, fits)}
	}
	return r
}
