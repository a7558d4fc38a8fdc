package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"

	"goipip/encap"
	"goipip/internal/packet"
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
	count    received

	parts [1][]byte // what Write takes, without a new slice each time

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
	n, bytes := 0, 0
	mtu := int(r.mtu.Load())
	for _, outer := range packets {
		inner, v := r.decap.Decap(outer)
		if v != encap.Deliver {
			r.unusual(v, outer)
		}
		if v.Dropped() {
			continue
		}
		err := r.deliver(inner, mtu)
		switch {
		case err == nil:
			n++
			bytes += len(inner)
		case errors.Is(err, tun.ErrDown):
			r.count.linkDown.Add(1)
		case errors.Is(err, tun.ErrRefused):
			r.count.refused.Add(1)
		default:
			return err
		}
	}
	r.count.packets.Add(uint64(n))
	r.count.bytes.Add(uint64(bytes))
	return nil
}

// unusual counts a drop, and logs what Linux logs (ip_tunnel_rcv in
// net/ipv4/ip_tunnel.c), no more often than Linux does (net_ratelimit).
func (r *receive) unusual(v encap.Verdict, outer packet.IPv4) {
	if v.Dropped() {
		r.count.verdicts[v].Add(1)
	}
	if (v == encap.DeliverNonECT || v == encap.BadECN) && r.logLimit.Allow() {
		r.log.Info("non-ECT inner packet in an outer one with ECT", "from", netip.AddrFrom4(outer.Source()),
			"tos", fmt.Sprintf("%#02x", outer.TOS()), "verdict", v.String())
	}
}

// deliver writes one inner packet to the link. What the sender's kernel left
// unfinished is left to ours, or finished here where the queue cannot say it.
func (r *receive) deliver(inner packet.IPv4, mtu int) error {
	hdr := encap.Unfinished(inner, mtu)
	if hdr.NeedsCsum() && !r.queue.VNet() {
		packet.FinishChecksum(inner, hdr)
		hdr = packet.VNetHdr{}
	}
	r.parts[0] = inner
	return r.queue.Write(hdr, r.parts[:])
}
