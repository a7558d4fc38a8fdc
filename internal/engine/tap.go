package engine

import (
	"slices"
	"sync/atomic"
	"time"

	"goipip/internal/stats"
)

// What a Tap holds: so many packets, and so many bytes of each. With a batch of 64 packets
// for each worker, that is several batches, in 1 MiB.
const (
	tapRoom    = 512
	tapSnapLen = 2048
)

// Tap gets copies of the packets that a tunnel drops. Loops never wait for its reader: for
// what they find no room they count. Without a Tap they do neither.
type Tap struct {
	tunnel *Tunnel
	free   chan *Dropped // has room for all
	filled chan *Dropped // has room for all
	lost   atomic.Uint64
	closed chan struct{}
}

// Dropped is a packet that a tunnel dropped.
type Dropped struct {
	Time   time.Time
	Sent   bool // it came from the link, rather than from the remote end
	Reason stats.Reason
	Outer  int    // length of the outer header that Packet begins with, in bytes; 0 without one
	Length int    // of the whole packet, in bytes
	Packet []byte // its beginning
}

// Tap returns a Tap for what the tunnel drops from now on. The caller closes it.
func (t *Tunnel) Tap() *Tap {
	tap := &Tap{
		tunnel: t,
		free:   make(chan *Dropped, tapRoom),
		filled: make(chan *Dropped, tapRoom),
		closed: make(chan struct{}),
	}
	for range tapRoom {
		tap.free <- &Dropped{Packet: make([]byte, 0, tapSnapLen)}
	}
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	if _, ok := t.engine.tunnels[t]; !ok {
		close(tap.closed)
		return tap
	}
	taps := []*Tap{tap}
	if others := t.taps.Load(); others != nil {
		taps = append(taps, *others...)
	}
	t.taps.Store(&taps)
	return tap
}

// Next waits for a packet, which is valid until it is given back to Free. After Close, or
// the tunnel's, it returns those that are left, and then false.
func (tap *Tap) Next() (*Dropped, bool) {
	select {
	case d := <-tap.filled:
		return d, true
	case <-tap.closed:
	}
	select {
	case d := <-tap.filled:
		return d, true
	default:
		return nil, false
	}
}

// Free gives the memory of a packet back.
func (tap *Tap) Free(d *Dropped) { tap.free <- d }

// Lost returns how many dropped packets found no room.
func (tap *Tap) Lost() uint64 { return tap.lost.Load() }

// Close ends the capture. Closing once more does nothing.
func (tap *Tap) Close() {
	t := tap.tunnel
	t.engine.mu.Lock()
	defer t.engine.mu.Unlock()
	taps := t.taps.Load()
	if taps == nil || !slices.Contains(*taps, tap) {
		return
	}
	others := slices.DeleteFunc(slices.Clone(*taps), func(other *Tap) bool { return other == tap })
	t.taps.Store(&others)
	if len(others) == 0 {
		t.taps.Store(nil)
	}
	close(tap.closed)
}

// closeTaps ends all captures. It needs the Engine's mu.
func (t *Tunnel) closeTaps() {
	if taps := t.taps.Swap(nil); taps != nil {
		for _, tap := range *taps {
			close(tap.closed)
		}
	}
}

// put copies a packet, which lies in two parts, and of which d has the rest.
func (tap *Tap) put(d Dropped, header, payload []byte) {
	select {
	case to := <-tap.free:
		room := to.Packet[:cap(to.Packet)]
		*to = d
		n := copy(room, header)
		n += copy(room[n:], payload)
		to.Packet = room[:n]
		tap.filled <- to
	default:
		tap.lost.Add(1)
	}
}

// show copies a dropped packet for all who capture.
func show(taps []*Tap, d Dropped, header, payload []byte) {
	d.Time, d.Length = time.Now(), len(header)+len(payload)
	for _, tap := range taps {
		tap.put(d, header, payload)
	}
}

// drop counts a packet from the link as dropped. It lies in two parts, with an outer header of
// so many bytes in front.
func (p *outPort) drop(why stats.Reason, outer int, header, payload []byte) {
	p.count.Drop(why, 1)
	if taps := p.tunnel.taps.Load(); taps != nil {
		show(*taps, Dropped{Sent: true, Reason: why, Outer: outer}, header, payload)
	}
}

// drop counts a received packet as dropped, with an outer header of so many bytes in front.
func (p *inPort) drop(why stats.Reason, outer int, packet []byte) {
	p.count.Drop(why, 1)
	if taps := p.tunnel.taps.Load(); taps != nil {
		show(*taps, Dropped{Reason: why, Outer: outer}, packet, nil)
	}
}
