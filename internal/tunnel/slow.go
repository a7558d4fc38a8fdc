package engine

import (
	"errors"
	"time"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/tun"
)

// fragmentable reports whether the path has room for fragments of a packet that is
// too long for it: for their headers, and 8 bytes (RFC 791 §3.2).
func fragmentable(outer, inner packet.IPv4, mtu int) bool {
	room := mtu - encap.HdrLen
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
func (t *transmit) fragment(outer, inner packet.IPv4, mtu int) error {
	if !outer.DF() {
		return t.fragmentOuter(outer, inner, mtu)
	}
	inner = inner[:inner.TotalLength()]
	fragments := encap.Fragment(inner[:inner.HdrLen()], inner[inner.HdrLen():], mtu-encap.HdrLen)
	for {
		slot := &t.headers[t.sender.Len()]
		hdr, payload := fragments.Next(slot[encap.HdrLen:])
		if hdr == nil {
			return nil
		}
		headers := slot[:encap.HdrLen+len(hdr)]
		t.encap.EncapHeader(headers[:encap.HdrLen], hdr, hdr.TotalLength())
		if err := t.push(headers, payload); err != nil {
			return err
		}
	}
}

// fragmentSegments does the same for each segment of a superpacket. Its headers and
// payload lie in different places, so that it is put together first.
func (t *transmit) fragmentSegments(segments encap.Segments, path *path) error {
	buf := make([]byte, segments.PacketLen())
	var outer [encap.HdrLen]byte
	for {
		hdr, payload := segments.Next(buf)
		if hdr == nil {
			return nil
		}
		inner := buf[:len(hdr)+copy(buf[len(hdr):], payload)]
		t.encap.EncapHeader(outer[:], inner, len(inner))
		if path.locked {
			t.encap.ClearDF(outer[:])
		}
		if err := t.fragment(outer[:], inner, path.mtu); err != nil {
			return err
		}
		if err := t.flush(); err != nil { // buf is used again
			return err
		}
	}
}

func (t *transmit) fragmentOuter(outer packet.IPv4, inner []byte, mtu int) error {
	copy(t.whole[:], outer) // the first fragment's header takes its place
	fragments := encap.Fragment(t.whole[:], inner, mtu)
	for {
		hdr, payload := fragments.Next(t.headers[t.sender.Len()][:])
		if hdr == nil {
			return nil
		}
		if err := t.push(hdr, payload); err != nil {
			return err
		}
	}
}

// reply sends an ICMP error about the packet inner to its sender, through the
// link it came by. Whether that arrives is nobody's concern; an error means that
// the link is gone.
func (t *transmit) reply(inner packet.IPv4, icmpType, code uint8, mtu int) error {
	message := encap.ICMPError(t.icmp[:], inner, icmpType, code, mtu)
	if message == nil || !t.limit.allow(message) {
		return nil
	}
	t.parts[0] = message
	err := t.replies.Write(packet.VNetHdr{}, t.parts[:])
	if errors.Is(err, tun.ErrDown) || errors.Is(err, tun.ErrRefused) || errors.Is(err, tun.ErrNoMemory) {
		return nil
	}
	return err
}

// mtuFreshFor is how long the kernel's word about the path's MTU is good enough to
// refuse a packet.
const mtuFreshFor = time.Millisecond

// fresh returns p with the path's MTU as the kernel has it now, or had a moment ago,
// for a decision that the sender will believe for ten minutes (T7). What a tunnel
// with a device remembers of its path by itself, the kernel does not know.
func (t *transmit) fresh(p *path) *path {
	if t.byDevice || p.loop || p.localMissing {
		return p
	}
	if now := time.Now(); now.Sub(t.asked) > mtuFreshFor {
		t.asked = now
		t.kernels.mtu = 0
		if mtu, err := t.kernelMTU(); err == nil {
			t.kernels.mtu = min(mtu, packet.IPv4MaxLen)
		}
	}
	if t.kernels.mtu == 0 || t.kernels.mtu == p.mtu {
		return p
	}
	t.doubt()
	mtu := t.kernels.mtu
	t.kernels = *p
	t.kernels.mtu = mtu
	return &t.kernels
}

// maxQuote is how much of a packet an ICMP error about it needs, in bytes (RFC 1812
// §4.3.2.3).
const maxQuote = 576

// answerTooBig tells the sender of message i, which the kernel refused as too long for
// the path although the loop thought that it fits, of the path's MTU (T7).
func (t *transmit) answerTooBig(i int) error {
	header, payload := t.sender.Message(i)
	outer := packet.IPv4(header[:encap.HdrLen])
	if !outer.DF() {
		return nil // it was to be fragmented
	}
	n := copy(t.quote[:], header[encap.HdrLen:])
	n += copy(t.quote[n:], payload)
	inner := packet.IPv4(t.quote[:n])
	if !inner.DF() {
		return nil
	}
	mtu, err := t.kernelMTU()
	if length := outer.TotalLength(); err != nil || mtu >= length {
		mtu = length - 1 // at least one byte less
	}
	return t.reply(inner, packet.ICMPUnreachable, packet.ICMPCodeFragNeeded, max(mtu-encap.HdrLen, MinMTU))
}
