package engine

import (
	"errors"
	"fmt"
	"net/netip"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/time/rate"
)

// Limits of log lines about packets: ten in five seconds, as net_ratelimit in the
// kernel.
const (
	logPerSecond = 2
	logBurst     = 10
)

// in moves one share of the packets from the remote ends to the tunnels' links.
type in struct {
	worker    int // its number
	engine    *Engine
	receiver  *rawsock.Receiver
	writer    *tun.Writer
	coalescer *encap.Coalescer
	ports     [rawsock.BatchSize]*inPort // of the packets that were added to the coalescer

	hdr   [encap.MaxHdrLen]byte // of a segment
	parts [2][]byte

	logLimit *rate.Limiter
}

// inPort is the queue of a tunnel that an in loop delivers to.
type inPort struct {
	tunnel *Tunnel
	queue  *tun.Queue
	link   encap.Link
	count  stats.Counters
}

// run works until the receiver is closed.
func (in *in) run() {
	for {
		packets, err := in.receiver.Receive()
		if err != nil {
			in.engine.fail(err)
			return
		}
		in.deliverAll(packets)
	}
}

// deliverAll passes one batch on.
func (in *in) deliverAll(packets []packet.IPv4) {
	var (
		last key
		port *inPort // of the tunnel between last
		plan *plan
		n    int
	)
	for _, outer := range packets {
		if len(outer) < packet.IPv4HdrLen {
			continue // no raw socket returns that
		}
		if k := key(outer.Addresses()); port == nil || k != last {
			t := in.engine.table.find(k)
			if t == nil {
				t = in.engine.table.findAny(k)
			}
			if t == nil {
				continue // another program's, or of a tunnel that is gone
			}
			last, port, plan = k, t.ins[in.worker], t.plan.Load()
			port.link.MTU = t.MTU()
		}
		inner, why := plan.decap.Decap(outer)
		if why != stats.Deliver {
			in.countAndLog(port, why, outer)
		}
		if why.Dropped() {
			continue
		}
		if plan.Keepalive != nil && plan.Keepalive.took(inner) {
			continue
		}
		if plan.MaxMSS != 0 && inner.HasSYN() {
			encap.ClampMSS(inner, plan.MaxMSS, encap.Unfinished(inner, port.link.MTU).NeedsCsum())
		}
		in.coalescer.Add(inner, &port.link)
		in.ports[n] = port
		n++
	}
	supers := in.coalescer.Take()
	for i := range supers {
		in.deliver(in.ports[supers[i].First], &supers[i])
	}
}

// deliver writes a packet, or several in one, to the link, and counts them.
func (in *in) deliver(port *inPort, s *encap.Super) {
	var err error
	if s.VNet.NeedsCsum() && !port.queue.VNet() {
		err = in.writeFinished(port, s)
	} else {
		err = in.writer.Write(port.queue, s.VNet, s.Parts)
	}
	switch {
	case err == nil:
		port.count.Pass(s.Count, s.Len)
	case errors.Is(err, tun.ErrDown):
		port.dropSuper(stats.LinkDown, s)
	case errors.Is(err, tun.ErrRefused) && s.Count > 1:
		in.deliverSplit(port, s)
	case errors.Is(err, tun.ErrRefused), errors.Is(err, tun.ErrNoMemory):
		port.dropSuper(stats.LinkRefused, s)
	default:
		port.tunnel.end(err)
	}
}

// dropSuper counts the packets of s as dropped.
func (p *inPort) dropSuper(why stats.Reason, s *encap.Super) {
	p.count.Drop(why, s.Count)
	taps := p.tunnel.taps.Load()
	if taps == nil {
		return
	}
	packets := s.Parts
	if s.Count > 1 {
		packets = s.Split()
	}
	for _, one := range packets {
		show(*taps, Dropped{Reason: why}, one, nil)
	}
}

// writeFinished writes one packet that the sender's kernel left unfinished, and
// that a plain queue cannot leave to ours: with its checksum, and in segments.
func (in *in) writeFinished(port *inPort, s *encap.Super) error {
	p := s.Parts[0]
	if s.VNet.GSOType == packet.VNetGSONone {
		packet.FinishChecksum(p, s.VNet)
		return in.writer.Write(port.queue, packet.VNetHdr{}, s.Parts)
	}
	segments, ok := encap.Segment(p, s.VNet)
	if !ok {
		return tun.ErrRefused
	}
	for {
		hdr, payload := segments.Next(in.hdr[:])
		if hdr == nil {
			return nil
		}
		in.parts[0], in.parts[1] = hdr, payload
		if err := in.writer.Write(port.queue, packet.VNetHdr{}, in.parts[:]); err != nil {
			return err
		}
	}
}

// deliverSplit delivers the packets of a superpacket that the kernel does not take,
// one by one, and makes no more of them.
func (in *in) deliverSplit(port *inPort, s *encap.Super) {
	in.engine.refused.Do(func() {
		in.engine.log.Warn("the kernel refuses merged packets: delivering them one by one from now on", "header", s.VNet)
	})
	port.link.TCP, port.link.UDP = false, false
	for _, p := range s.Split() {
		one := encap.Super{Parts: [][]byte{p}, Count: 1, Len: len(p)}
		in.deliver(port, &one)
	}
}

// countAndLog counts a drop, and logs what Linux logs (ip_tunnel_rcv in
// net/ipv4/ip_tunnel.c), no more often than Linux does (net_ratelimit).
func (in *in) countAndLog(port *inPort, why stats.Reason, outer packet.IPv4) {
	if why.Dropped() {
		port.drop(why, outer.HdrLen(), outer)
	}
	if (why == stats.DeliverNonECT || why == stats.BadECN) && in.logLimit.Allow() {
		port.tunnel.log.Info("non-ECT inner packet in an outer one with ECT", "from", netip.AddrFrom4(outer.Source()),
			"tos", fmt.Sprintf("%#02x", outer.TOS()), "verdict", why.String())
	}
}
