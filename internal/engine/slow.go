package engine

import (
	"time"

	"goipip/encap"
	"goipip/internal/packet"
)

// fragmentable reports whether the path has room for fragments of a packet that is
// too long for it: for their headers, and 8 bytes (RFC 791 §3.2).
func fragmentable(plan *plan, outer, inner packet.IPv4, mtu int) bool {
	room := mtu - plan.encap.HdrLen()
	if outer.DF() { // see fragment
		if !inner.Valid() {
			return false
		}
		room -= inner.HdrLen()
	}
	return room >= 8
}

// fragment sends a fragmentable packet in fragments that fit: of the inner packet
// where the outer one has DF (as a router in front of the tunnel would make them,
// RFC 2003 §5.1), and else of the outer one (T12).
func (o *out) fragment(outer, inner packet.IPv4, mtu int) {
	if !outer.DF() {
		o.fragmentOuter(outer, inner, mtu)
		return
	}
	hdrLen := len(outer)
	inner = inner[:inner.TotalLength()]
	fragments := encap.Fragment(inner[:inner.HdrLen()], inner[inner.HdrLen():], mtu-hdrLen)
	for {
		slot := o.header()
		hdr, payload := fragments.Next(slot[hdrLen:])
		if hdr == nil {
			return
		}
		o.added.plan.encap.EncapHeader(slot[:hdrLen], hdr, hdr.TotalLength())
		o.push(slot[:hdrLen+len(hdr)], payload)
	}
}

// fragmentSegments does the same for each segment of a superpacket. Its headers and
// payload lie in different places, so that it is put together first.
func (o *out) fragmentSegments(segments encap.Segments, path *Path) {
	plan := o.added.plan
	buf := make([]byte, segments.PacketLen())
	var room [encap.MaxHdrLen]byte
	outer := room[:plan.encap.HdrLen()]
	for {
		hdr, payload := segments.Next(buf)
		if hdr == nil {
			return
		}
		inner := buf[:len(hdr)+copy(buf[len(hdr):], payload)]
		plan.encap.EncapHeader(outer, inner, len(inner))
		if path.Locked {
			plan.encap.ClearDF(outer)
		}
		o.fragment(outer, inner, path.MTU)
		o.send() // buf is used again
	}
}

func (o *out) fragmentOuter(outer packet.IPv4, inner []byte, mtu int) {
	whole := o.outer[:copy(o.outer[:], outer)] // the first fragment's header takes its place
	fragments := encap.Fragment(whole, inner, mtu)
	for {
		hdr, payload := fragments.Next(o.header())
		if hdr == nil {
			return
		}
		o.push(hdr, payload)
	}
}

// replyTo sends an ICMP error about the packet inner to its sender, through the
// link it came by. Whether it arrives is not known.
func (o *out) replyTo(port *outPort, inner packet.IPv4, icmpType, code uint8, mtu int) {
	message := encap.ICMPError(o.icmp[:], inner, icmpType, code, mtu)
	if message == nil || !o.engine.replies.allow(message) {
		return
	}
	o.parts[0] = message
	_ = o.writer.Write(port.queue, packet.VNetHdr{}, o.parts[:]) // a link that is gone shows when it is read
}

// mtuFreshFor is how long the kernel's word about the path's MTU is good enough to
// refuse a packet.
const mtuFreshFor = time.Millisecond

// freshPath returns the path with the MTU that the kernel has for it now, or had a moment
// ago, for a decision that the sender will believe for ten minutes (T7).
func (o *out) freshPath() *Path {
	port, plan := o.added.port, o.added.plan
	p := &plan.Path
	if p.Loop || p.LocalMissing {
		return p
	}
	if now := time.Now(); now.Sub(port.asked) > mtuFreshFor {
		port.asked = now
		port.fresh.MTU = 0
		if mtu, err := o.prober.MTU(plan.probe); err == nil {
			port.fresh.MTU = min(mtu, packet.IPv4MaxLen)
			if p.Reported > 0 {
				port.fresh.MTU = min(port.fresh.MTU, p.Reported)
			}
		}
	}
	if port.fresh.MTU == 0 || port.fresh.MTU == p.MTU {
		return p
	}
	port.tunnel.owner.PathInDoubt()
	mtu := port.fresh.MTU
	port.fresh = *p
	port.fresh.MTU = mtu
	return &port.fresh
}

// maxQuote is how much of a packet an ICMP error about it needs, in bytes (RFC 1812
// §4.3.2.3).
const maxQuote = 576

// minMTU is what every IPv4 link must carry, in bytes (RFC 791).
const minMTU = 68

// answerTooBig tells the sender of message i, which the kernel refused as too long for
// the path although the loop thought that it fits, of the path's MTU (T7).
func (o *out) answerTooBig(i int) {
	s := &o.source[i]
	hdrLen := s.plan.encap.HdrLen()
	header, payload := o.sender.Message(i)
	outer := packet.IPv4(header[:hdrLen])
	if !outer.DF() {
		return // it was to be fragmented
	}
	n := copy(o.quote[:], header[hdrLen:])
	n += copy(o.quote[n:], payload)
	inner := packet.IPv4(o.quote[:n])
	if !inner.DF() {
		return
	}
	mtu, err := o.prober.MTU(s.plan.probe)
	if length := outer.TotalLength(); err != nil || mtu >= length {
		mtu = length - 1 // at least one byte less
	}
	o.replyTo(s.port, inner, packet.ICMPUnreachable, packet.ICMPCodeFragNeeded, max(mtu-hdrLen, minMTU))
}
