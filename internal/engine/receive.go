package engine

import (
	"errors"
	"sync/atomic"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/rawsock"
	"goipip/tun"
)

// receive moves packets from the remote end to one TUN queue.
type receive struct {
	receiver *rawsock.Receiver
	decap    *encap.Decapsulator
	queue    *tun.Queue
	mtu      *atomic.Int64 // of the link, in bytes
	count    received

	parts [1][]byte // what Write takes, without a new slice each time
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
			r.count.verdicts[v].Add(1)
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
