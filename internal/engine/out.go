package engine

import (
	"time"

	"goipip/encap"
	"goipip/internal/descriptor"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
	"goipip/tun"
)

// out moves the packets of one queue of each tunnel to the remote ends.
type out struct {
	engine *Engine
	set    *descriptor.Set[*outPort]
	reader *tun.Reader
	writer *tun.Writer // for ICMP errors to inner senders
	sender *rawsock.Sender
	prober *rawsock.Prober

	headers [rawsock.BatchSize][encap.MaxHdrLen]byte // before the payloads in the batch
	source  [rawsock.BatchSize]source                // of the messages in the batch
	added   source                                   // the last packet in the batch
	refused int                                      // the last packet that the kernel refused, by number

	outer [encap.MaxHdrLen]byte // the outer header of a packet in fragments
	icmp  [encap.MaxICMPLen]byte
	parts [1][]byte
	quote [maxQuote]byte // the beginning of a refused packet
}

// outPort is a queue of a tunnel, as an out loop sees it.
type outPort struct {
	tunnel *Tunnel
	queue  *tun.Queue
	count  stats.Counters
	passed passed // in the batch, and not refused

	asked time.Time // when the kernel was asked for the path's MTU
	fresh Path      // what came of it; MTU 0 if there was no answer
}

// passed may be negative: a packet was counted, and then one of its fragments refused.
type passed struct{ packets, bytes int }

// source is the inner packet that a message carries, or a part of which.
type source struct {
	port   *outPort
	plan   *plan
	number int // counts up from 1
	length int // in bytes
}

func newOut(e *Engine) (_ *out, err error) {
	o := &out{engine: e, reader: tun.NewReader(), writer: tun.NewWriter()}
	defer func() {
		if err != nil {
			o.close()
			o.finish()
		}
	}()
	if o.set, err = descriptor.NewSet[*outPort](); err != nil {
		return nil, err
	}
	if o.sender, err = rawsock.NewSender(e.local, o.refuse); err != nil {
		return nil, err
	}
	o.prober, err = rawsock.NewProber()
	return o, err
}

// close ends run, and closes what was opened.
func (o *out) close() {
	if o.set != nil {
		o.set.Close()
	}
	if o.sender != nil {
		o.sender.Close()
	}
	if o.prober != nil {
		o.prober.Close()
	}
}

// finish closes what run closes at its end, if run was never called.
func (o *out) finish() {
	if o.set != nil {
		_, _ = o.set.Wait(false)
	}
}

// run works until the set or the sender is closed.
func (o *out) run() {
	progress := false
	for {
		ports, ok := o.set.Wait(progress)
		if !ok {
			return
		}
		progress = false
		for _, port := range ports {
			progress = o.take(port) || progress
		}
		o.flush()
	}
}

// take puts into the batch what a queue holds now, and reports whether that was anything.
func (o *out) take(port *outPort) bool {
	if !o.reader.Room() {
		o.flush()
	}
	packets, err := o.reader.Read(port.queue)
	plan := port.tunnel.plan.Load()
	for i := range packets {
		o.add(port, &packets[i], plan)
	}
	if err != nil {
		o.set.Drop(port.queue.FD())
		port.tunnel.end(err)
	}
	return len(packets) > 0
}

// add puts one packet into the batch, with its outer header, in the order of the
// rules T.
func (o *out) add(port *outPort, p *tun.Packet, plan *plan) {
	inner := packet.IPv4(p.Bytes)
	outer := o.header()[:plan.encap.HdrLen()]
	super := p.VNet.GSOType != packet.VNetGSONone
	var why stats.Reason
	if super {
		why = plan.encap.Check(inner)
	} else {
		why = plan.encap.Encap(outer, inner)
	}
	switch {
	case why != stats.Deliver:
	case plan.Path.Loop: // T4
		why = stats.Loop
	case !super && p.VNet.NeedsCsum() && !packet.FinishChecksum(inner, p.VNet):
		why = stats.Malformed
	case plan.Path.LocalMissing: // T3
		why = stats.NoRoute
	}
	if why != stats.Deliver {
		port.drop(why, 0, inner, nil)
		return
	}
	if plan.MaxMSS != 0 && inner.HasSYN() {
		encap.ClampMSS(inner, plan.MaxMSS, super) // Segment computes checksums anew
	}
	o.added = source{port: port, plan: plan, number: o.added.number + 1, length: len(inner)}
	if super {
		o.addSuper(p)
		return
	}
	path := &plan.Path
	if path.Locked {
		plan.encap.ClearDF(outer)
	}
	length := packet.IPv4(outer).TotalLength()
	fits := length <= path.MTU
	if !fits && inner.DF() {
		path = o.freshPath()
		fits = length <= path.MTU
	}
	if !o.admit(inner, fits, fits || fragmentable(plan, outer, inner, path.MTU), path) {
		return
	}
	if fits {
		o.push(outer, inner)
		return
	}
	o.fragment(outer, inner, path.MTU)
}

// header returns the memory for the headers of the next message.
func (o *out) header() []byte { return o.headers[o.sender.Len()][:] }

// admit does what concerns the sender of a packet that fits the path, whole or in
// fragments, or not (T7, T8). With true the packet goes into the batch, and is counted so.
func (o *out) admit(inner packet.IPv4, fits, fragmentable bool, path *Path) bool {
	port, plan := o.added.port, o.added.plan
	if !fits && (inner.DF() || !fragmentable) {
		port.drop(stats.TooBig, 0, inner, nil)
		if inner.DF() {
			o.replyTo(port, inner, packet.ICMPUnreachable, packet.ICMPCodeFragNeeded, path.MTU-plan.encap.HdrLen())
		}
		return false
	}
	if soft := &port.tunnel.soft; soft.any.Load() && soft.take(time.Now()) {
		o.replyTo(port, inner, packet.ICMPUnreachable, packet.ICMPCodeHost, 0)
	}
	port.passed.packets++
	port.passed.bytes += len(inner)
	return true
}

// addSuper does what add does for a superpacket, which is cut into packets.
func (o *out) addSuper(p *tun.Packet) {
	port, plan := o.added.port, o.added.plan
	segments, ok := encap.Segment(p.Bytes, p.VNet)
	if !ok {
		port.drop(stats.Malformed, 0, p.Bytes, nil)
		return
	}
	inner, path := packet.IPv4(p.Bytes), &plan.Path
	hdrLen := plan.encap.HdrLen()
	fits := hdrLen+segments.PacketLen() <= path.MTU
	if !fits && inner.DF() {
		path = o.freshPath()
		fits = hdrLen+segments.PacketLen() <= path.MTU
	}
	room := path.MTU - hdrLen - inner.HdrLen()
	if !o.admit(inner, fits, room >= 8, path) {
		return
	}
	if !fits {
		o.fragmentSegments(segments, path)
		return
	}
	for {
		slot := o.header()
		hdr, payload := segments.Next(slot[hdrLen:])
		if hdr == nil {
			return
		}
		plan.encap.EncapHeader(slot[:hdrLen], hdr, len(hdr)+len(payload))
		if path.Locked {
			plan.encap.ClearDF(slot[:hdrLen])
		}
		o.push(slot[:hdrLen+len(hdr)], payload)
	}
}

// push puts one message into the batch, and sends the batch when it is full.
func (o *out) push(header, payload []byte) {
	o.source[o.sender.Len()] = o.added
	o.sender.Add(&o.added.port.tunnel.peer, header, payload)
	if o.sender.Len() == rawsock.BatchSize {
		o.send()
	}
}

// flush sends the batch, after which the reader's memory is free.
func (o *out) flush() {
	o.send()
	o.reader.Reset()
}

// send sends the batch, and counts what of it was sent (T13).
func (o *out) send() {
	n := o.sender.Len()
	_ = o.sender.Flush() // after Close, run sees that the set is closed
	for i := range n {
		if port := o.source[i].port; port.passed != (passed{}) {
			port.count.Pass(port.passed.packets, port.passed.bytes)
			port.passed = passed{}
		}
	}
}

// refuse counts the packet of message i as dropped, once for all its fragments.
func (o *out) refuse(i int, why stats.Reason) {
	s := &o.source[i]
	if s.number == o.refused {
		return
	}
	o.refused = s.number
	header, payload := o.sender.Message(i)
	outer := s.plan.encap.HdrLen()
	if packet.IPv4(header).FragmentOffset() > 0 {
		outer = 0 // no inner header follows
	}
	s.port.drop(why, outer, header, payload)
	s.port.passed.packets--
	s.port.passed.bytes -= s.length
	if why == stats.TooBig {
		s.port.tunnel.owner.PathInDoubt()
		o.answerTooBig(i)
	}
}
