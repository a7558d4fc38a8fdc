package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/time/rate"
)

// receive moves packets from the remote end to one TUN queue.
type receive struct {
	receiver *rawsock.Receiver
	decap    *encap.Decapsulator
	queue    *tun.Queue
	mtu      *atomic.Int64 // of the link, in bytes
	count    stats.Counters

	coalescer *encap.Coalescer
	unmerged  *sync.Once // of the tunnel: the kernel refuses merged packets

	hdr   [encap.MaxHdrLen]byte // of a segment
	parts [2][]byte

	log      *slog.Logger
	logLimit *rate.Limiter
}

// run works until the receiver or the queue is closed, or the link is gone.
func (r *receive) run() error {
	for {
		packets, err := r.receiver.Receive()
		if err != nil {
			return err
		}
		if err := r.deliverAll(packets); err != nil {
			return err
		}
	}
}

// deliverAll passes one batch on.
func (r *receive) deliverAll(packets []packet.IPv4) error {
	mtu := int(r.mtu.Load())
	for _, outer := range packets {
		inner, why := r.decap.Decap(outer)
		if why != stats.Deliver {
			r.unusual(why, outer)
		}
		if why.Dropped() {
			continue
		}
		r.coalescer.Add(inner, mtu)
	}
	supers := r.coalescer.Take()
	for i := range supers {
		if err := r.deliver(&supers[i]); err != nil {
			return err
		}
	}
	return nil
}

// deliver writes a packet, or several in one, to the link, and counts them.
func (r *receive) deliver(s *encap.Super) error {
	var err error
	if s.VNet.NeedsCsum() && !r.queue.VNet() {
		err = r.writeFinished(s)
	} else {
		err = r.queue.Write(s.VNet, s.Parts)
	}
	switch {
	case err == nil:
		r.count.Pass(s.Count, s.Len)
	case errors.Is(err, tun.ErrDown):
		r.count.Drop(stats.LinkDown, s.Count)
	case errors.Is(err, tun.ErrRefused) && s.Count > 1:
		return r.deliverSplit(s)
	case errors.Is(err, tun.ErrRefused), errors.Is(err, tun.ErrNoMemory):
		r.count.Drop(stats.LinkRefused, s.Count)
	default:
		return err
	}
	return nil
}

// writeFinished writes one packet that the sender's kernel left unfinished, and
// that a plain queue cannot leave to ours: with its checksum, and in segments.
func (r *receive) writeFinished(s *encap.Super) error {
	p := s.Parts[0]
	if s.VNet.GSOType == packet.VNetGSONone {
		packet.FinishChecksum(p, s.VNet)
		return r.queue.Write(packet.VNetHdr{}, s.Parts)
	}
	segments, ok := encap.Segment(p, s.VNet)
	if !ok {
		return tun.ErrRefused
	}
	for {
		hdr, payload := segments.Next(r.hdr[:])
		if hdr == nil {
			return nil
		}
		r.parts[0], r.parts[1] = hdr, payload
		if err := r.queue.Write(packet.VNetHdr{}, r.parts[:]); err != nil {
			return err
		}
	}
}

// deliverSplit delivers the packets of a superpacket that the kernel does not take,
// one by one, and makes no more of them.
func (r *receive) deliverSplit(s *encap.Super) error {
	r.unmerged.Do(func() {
		r.log.Warn("the kernel refuses merged packets: delivering them one by one from now on", "header", s.VNet)
	})
	r.coalescer.Stop()
	for _, p := range s.Split() {
		one := encap.Super{Parts: [][]byte{p}, Count: 1, Len: len(p)}
		if err := r.deliver(&one); err != nil {
			return err
		}
	}
	return nil
}

// unusual counts a drop, and logs what Linux logs (ip_tunnel_rcv in
// net/ipv4/ip_tunnel.c), no more often than Linux does (net_ratelimit).
func (r *receive) unusual(why stats.Reason, outer packet.IPv4) {
	if why.Dropped() {
		r.count.Drop(why, 1)
	}
	if (why == stats.DeliverNonECT || why == stats.BadECN) && r.logLimit.Allow() {
		r.log.Info("non-ECT inner packet in an outer one with ECT", "from", netip.AddrFrom4(outer.Source()),
			"tos", fmt.Sprintf("%#02x", outer.TOS()), "verdict", why.String())
	}
}
