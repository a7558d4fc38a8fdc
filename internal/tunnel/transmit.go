package engine

import (
	"sync/atomic"
	"time"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
	"goipip/tun"
)

// transmit moves the packets of one TUN queue to the remote end.
type transmit struct {
	*shared
	queue  *tun.Queue
	sender *rawsock.Sender
	count  stats.Counters

	headers [rawsock.BatchSize][encap.MaxHdrLen]byte // before the payloads in the batch
	source  [rawsock.BatchSize]source                // of the messages in the batch
	added   source                                   // the last packet in the batch
	passed  struct{ packets, bytes int }             // in the batch, and not refused
	refusal int                                      // the last packet that was refused, by number
	failed  error                                    // of an answer to one of those

	whole   [encap.HdrLen]byte // the outer header of a packet in fragments
	replies *tun.Writer        // for ICMP errors to inner senders
	icmp    [encap.MaxICMPLen]byte
	parts   [1][]byte
	quote   [maxQuote]byte // the beginning of a refused packet

	asked   time.Time // when kernelMTU was
	kernels path      // what came of it
}

// shared is what the transmit loops of a tunnel have in common.
type shared struct {
	encap     *encap.Encapsulator
	path      atomic.Pointer[path]
	soft      softErrors
	limit     *icmpLimit
	byDevice  bool                // packets leave by a configured device
	doubt     func()              // has the path looked up again soon
	kernelMTU func() (int, error) // asks the kernel for the path's MTU in bytes, without waiting
}

// path is what a transmit loop goes by. It never changes; another takes its place.
type path struct {
	mtu          int  // of the whole path, as far as known, in bytes
	locked       bool // DF is to be cleared, see underlay.Path
	loop         bool // it leads into the tunnel itself (T4)
	localMissing bool // there is no route then (T3)
}

// source is the inner packet that a message carries, or a part of which.
type source struct {
	number int // counts up from 1
	length int // in bytes
}

func newTransmit(queue *tun.Queue, s *shared, sock rawsock.Config) (_ *transmit, err error) {
	t := &transmit{shared: s, queue: queue, replies: queue.NewWriter()}
	t.sender, err = rawsock.NewSender(sock, t.refused)
	return t, err
}

// run works until the queue or the sender is closed, or the link is gone.
func (t *transmit) run() error {
	for {
		packets, err := t.queue.Read()
		if err != nil {
			return err
		}
		if err := t.sendAll(packets); err != nil {
			return err
		}
	}
}

// sendAll passes on what one Read returned.
func (t *transmit) sendAll(packets []tun.Packet) error {
	path := t.path.Load()
	for i := range packets {
		if err := t.add(&packets[i], path); err != nil {
			return err
		}
	}
	return t.flush()
}

// add puts one packet into the batch, with its outer header, in the order of the
// rules T.
func (t *transmit) add(p *tun.Packet, path *path) error {
	inner := packet.IPv4(p.Bytes)
	outer := packet.IPv4(t.headers[t.sender.Len()][:encap.HdrLen])
	super := p.VNet.GSOType != packet.VNetGSONone
	var why stats.Reason
	if super {
		why = t.encap.Check(inner)
	} else {
		why = t.encap.Encap(outer, inner)
	}
	switch {
	case why != stats.Deliver:
	case path.loop: // T4
		why = stats.Loop
	case !super && p.VNet.NeedsCsum() && !packet.FinishChecksum(inner, p.VNet):
		why = stats.Malformed
	case path.localMissing: // T3
		why = stats.NoRoute
	}
	if why != stats.Deliver {
		t.count.Drop(why, 1)
		return nil
	}
	if super {
		return t.addSuper(p, path)
	}
	if path.locked {
		t.encap.ClearDF(outer)
	}
	fits := outer.TotalLength() <= path.mtu
	if !fits && inner.DF() {
		path = t.fresh(path)
		fits = outer.TotalLength() <= path.mtu
	}
	if ok, err := t.admit(inner, fits, fits || fragmentable(outer, inner, path.mtu), path); !ok {
		return err
	}
	if fits {
		return t.push(outer, inner)
	}
	return t.fragment(outer, inner, path.mtu)
}

// admit does what concerns the sender of a packet that fits the path, whole or in
// fragments, or not (T7, T8). With true the packet is to be sent, and counted so.
func (t *transmit) admit(inner packet.IPv4, fits, fragmentable bool, path *path) (ok bool, err error) {
	if !fits && (inner.DF() || !fragmentable) {
		t.count.Drop(stats.TooBig, 1)
		if inner.DF() {
			err = t.reply(inner, packet.ICMPUnreachable, packet.ICMPCodeFragNeeded, path.mtu-encap.HdrLen)
		}
		return false, err
	}
	if t.soft.any.Load() && t.soft.take(time.Now()) {
		if err := t.reply(inner, packet.ICMPUnreachable, packet.ICMPCodeHost, 0); err != nil {
			return false, err
		}
	}
	t.added = source{t.added.number + 1, len(inner)}
	t.passed.packets++
	t.passed.bytes += len(inner)
	return true, nil
}

// addSuper does the same for a superpacket, which is cut into packets.
func (t *transmit) addSuper(p *tun.Packet, path *path) error {
	segments, ok := encap.Segment(p.Bytes, p.VNet)
	if !ok {
		t.count.Drop(stats.Malformed, 1)
		return nil
	}
	inner := packet.IPv4(p.Bytes)
	fits := encap.HdrLen+segments.PacketLen() <= path.mtu
	if !fits && inner.DF() {
		path = t.fresh(path)
		fits = encap.HdrLen+segments.PacketLen() <= path.mtu
	}
	room := path.mtu - encap.HdrLen - inner.HdrLen()
	if ok, err := t.admit(inner, fits, room >= 8, path); !ok {
		return err
	}
	if !fits {
		return t.fragmentSegments(segments, path)
	}
	for {
		slot := &t.headers[t.sender.Len()]
		hdr, payload := segments.Next(slot[encap.HdrLen:])
		if hdr == nil {
			return nil
		}
		outer := slot[:encap.HdrLen]
		t.encap.EncapHeader(outer, hdr, len(hdr)+len(payload))
		if path.locked {
			t.encap.ClearDF(outer)
		}
		if err := t.push(slot[:encap.HdrLen+len(hdr)], payload); err != nil {
			return err
		}
	}
}

// push puts one message into the batch, and sends the batch when it is full.
func (t *transmit) push(header, payload []byte) error {
	t.source[t.sender.Len()] = t.added
	t.sender.Add(header, payload)
	if t.sender.Len() < rawsock.BatchSize {
		return nil
	}
	return t.flush()
}

// flush sends the batch, and counts what of it was sent (T13).
func (t *transmit) flush() error {
	err := t.sender.Flush()
	t.count.Pass(t.passed.packets, t.passed.bytes)
	t.passed.packets, t.passed.bytes = 0, 0
	if err == nil {
		err = t.failed
	}
	return err
}

// refused counts the packet of message i as dropped, once for all its fragments.
func (t *transmit) refused(i int, why stats.Reason) {
	s := t.source[i]
	again := s.number == t.refusal
	if !again {
		t.refusal = s.number
		t.count.Drop(why, 1)
		t.passed.packets--
		t.passed.bytes -= s.length
	}
	if why == stats.TooBig && !again && t.failed == nil {
		t.doubt()
		t.failed = t.answerTooBig(i)
	}
}
