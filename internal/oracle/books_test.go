package oracle_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"goipip/internal/packet"
)

// countTime is how long goipip's counters may take after its packets.
const countTime = time.Second

// bisectLimit is how many inputs are named, in all, that are counted wrong.
const bisectLimit = 3

// books compare the counters of both tunnels over a time.
type books struct {
	before   [2]tally
	expected tally // the reference's counters less goipip's
	vague    bool  // what was received cannot be told apart
	short    int64 // so many packets are, perhaps, too short for one of the two
}

// expect enters a difference of the counters that there is to be.
func (b *books) expect(difference tally) {
	if b.expected != nil {
		b.expected.add(difference, 1)
	}
}

// in enters a packet that is sent to both devices.
func (b *books) in(p packet.IPv4) {
	switch {
	case b.expected == nil || !p.Valid() || !fromPeer(p) || packet.Sum(p[:p.HdrLen()], 0) != 0xffff:
		// not for the tunnel
	case !isVague(p):
		b.expect(receivedDifferently(p, p.Payload()))
	default:
		for _, h := range headers(p) {
			if fromPeer(h) && min(len(h), h.TotalLength())-h.HdrLen() < packet.IPv4HdrLen {
				b.short++
			}
		}
	}
}

// out enters a packet that came out of a device: its tunnel counts what it sent
// (T13), and goipip what it did not send as a loop (G4).
func (b *books) out(d int, p packet.IPv4) {
	if !fromTunnel(p) {
		return
	}
	t := tally{"tx_bytes": int64(len(p.Payload()))}
	if p.FragmentOffset() == 0 {
		t["tx_packets"] = 1
	}
	if d == 1 {
		for name := range t {
			t[name] = -t[name]
		}
	} else {
		t.add(unsent(p.Payload()), -1)
	}
	b.expect(t)
}

// unsent returns how goipip counts what it does not send, though the reference
// does.
func unsent(inner packet.IPv4) tally {
	switch {
	case len(inner) < packet.IPv4HdrLen:
	case inner.Version() != 4:
		return tally{"tx_errors": 1}
	case inner.TTL() == 0:
		return tally{"tx_dropped": 1}
	case loops(inner):
		return tally{"tx_errors": 1, "collisions": 1}
	}
	return nil
}

// read returns the counters of both tunnels.
func (r *rig) read() (now [2]tally) {
	r.t.Helper()
	for d, dev := range r.devices {
		var err error
		if now[d], err = dev.counters(); err != nil {
			r.fatalf("%s: counters: %v", dev.name, err)
		}
	}
	return now
}

// openBooks begins when nothing is on its way any more.
func (r *rig) openBooks(vague bool) {
	r.t.Helper()
	r.books = books{}
	for before := r.read(); ; {
		r.drain()
		now := r.read()
		if maps.Equal(before[0], now[0]) && maps.Equal(before[1], now[1]) {
			r.books = books{before: now, expected: tally{}, vague: vague}
			return
		}
		before = now
	}
}

// closeBooks returns how the counters differ, beside what was expected: nothing
// where all is right.
func (r *rig) closeBooks() tally {
	r.t.Helper()
	for deadline := time.Now().Add(countTime); ; {
		now := r.read()
		r.drain()
		wrong := r.books.compare(now)
		if len(wrong) == 0 || time.Now().After(deadline) {
			r.books = books{}
			return wrong
		}
	}
}

func (b *books) compare(after [2]tally) tally {
	wrong := tally{}
	wrong.add(after[0], 1)
	wrong.add(b.before[0], -1)
	wrong.add(after[1], -1)
	wrong.add(b.before[1], 1)
	wrong.add(b.expected, -1)
	if b.vague {
		received := wrong["rx_packets"] + wrong["rx_errors"] + wrong["rx_dropped"]
		if received < 0 {
			received = min(0, received+b.short)
		}
		for _, name := range []string{"rx_packets", "rx_errors", "rx_dropped", "rx_frame", "rx_bytes"} {
			delete(wrong, name)
		}
		wrong.add(tally{"rx_packets, rx_errors and rx_dropped": received}, 1)
	}
	return wrong
}

// counted runs compare on inputs, and then tests R6 and T13: the counters.
func (r *rig) counted(t *testing.T, inputs []input, compare func(*testing.T, []input)) {
	clear, vague := split(inputs)
	for _, part := range []struct {
		inputs []input
		vague  bool
	}{{clear, false}, {vague, true}} {
		if len(part.inputs) == 0 {
			continue
		}
		r.begin(t)
		r.openBooks(part.vague)
		failures := r.failures
		compare(t, part.inputs)
		r.t = t
		wrong := r.closeBooks()
		if r.failures > failures {
			continue // with others
		}
		for _, rule := range []string{"R6", "T13"} {
			t.Run(rule+"_counters", func(t *testing.T) {
				r.begin(t)
				mine := wrong.of(rule)
				if len(mine) == 0 {
					return
				}
				t.Logf("counters of %s less those of %s, beside what is known: %v", deviceNames[0], deviceNames[1], mine)
				if r.bisect(part.inputs, part.vague, rule) {
					t.Error("and once more")
					r.failures++
				}
			})
		}
	}
}

// of returns the counters that a rule is about: of what is received, or of what
// is sent.
func (t tally) of(rule string) tally {
	prefix := map[string]string{"R6": "rx", "T13": "tx"}[rule]
	mine := tally{}
	for name, n := range t {
		if name[:2] == prefix || name == "collisions" && prefix == "tx" {
			mine[name] = n
		}
	}
	return mine
}

// bisect sends inputs once more, and reports whether they are counted wrong again.
// It names some that are.
func (r *rig) bisect(inputs []input, vague bool, rule string) bool {
	r.t.Helper()
	if r.named == bisectLimit {
		return true
	}
	r.openBooks(vague)
	for window := range slices.Chunk(inputs, windowSize) {
		r.compareWindow(window, 0)
	}
	wrong := r.closeBooks().of(rule)
	switch {
	case len(wrong) == 0:
		return false
	case len(inputs) == 1:
		r.named++
		r.t.Errorf("%v: %v", wrong, mismatch{in: inputs[0]})
		return true
	}
	first := r.bisect(inputs[:len(inputs)/2], vague, rule)
	second := r.bisect(inputs[len(inputs)/2:], vague, rule)
	return first || second
}

// split tells inputs of which it is clear how they are counted from others: those
// that the kernel reassembles, or whose outer options it may refuse.
func split(inputs []input) (clear, vague []input) {
	for _, in := range inputs {
		if slices.ContainsFunc(in.packets, isVague) {
			vague = append(vague, in)
		} else {
			clear = append(clear, in)
		}
	}
	return clear, vague
}

func isVague(p packet.IPv4) bool {
	arriving := 0
	for _, h := range headers(p) {
		if fromPeer(h) {
			arriving++
			if h.HdrLen() > packet.IPv4HdrLen || h.IsFragment() {
				return true
			}
		}
	}
	return arriving > 1
}

// receivedDifferently returns how the reference counts a packet that arrives, and
// the inner one in it, less how goipip does.
func receivedDifferently(outer, inner packet.IPv4) tally {
	for _, d := range countDifferences {
		if t := d.counts(outer, inner); t != nil {
			d.used++
			return t
		}
	}
	return nil
}

// countDifference is a difference in the counters for a packet that arrives.
type countDifference struct {
	rule   string
	what   string
	counts func(outer, inner packet.IPv4) tally // the reference's less goipip's
	used   int
}

// countDifferences are tried in this order.
var countDifferences = []*countDifference{
	{
		rule: "R4",
		what: "tunnel4_rcv drops what has no whole header, before it comes to a tunnel",
		counts: func(_, inner packet.IPv4) tally {
			if len(inner) < packet.IPv4HdrLen {
				return tally{"rx_errors": -1, "rx_frame": -1}
			}
			return nil
		},
	},
	{
		rule: "R5",
		what: "none: both drop what ECN forbids, though other things may be wrong with it",
		counts: func(outer, inner packet.IPv4) tally {
			const ecn, ce = 3, 3
			if outer.TOS()&ecn == ce && inner.TOS()&ecn == 0 {
				return tally{}
			}
			return nil
		},
	},
	{
		rule: "R4",
		what: "ip_tunnel_rcv looks at no more than the length of the inner header, and ip_rcv drops others later",
		counts: func(_, inner packet.IPv4) tally {
			if !inner.Valid() {
				return tally{"rx_packets": 1, "rx_bytes": int64(len(inner)), "rx_errors": -1, "rx_frame": -1}
			}
			return nil
		},
	},
	{
		rule: "G3",
		what: "goipip drops what has no TTL",
		counts: func(_, inner packet.IPv4) tally {
			if inner.TTL() == 0 {
				return tally{"rx_packets": 1, "rx_bytes": int64(len(inner)), "rx_dropped": -1}
			}
			return nil
		},
	},
	{
		rule: "G2",
		what: "goipip drops martians",
		counts: func(_, inner packet.IPv4) tally {
			if martian(inner) || isOwn(inner.Source()) {
				return tally{"rx_packets": 1, "rx_bytes": int64(len(inner)), "rx_dropped": -1}
			}
			return nil
		},
	},
	{
		rule: "R6",
		what: "ip_tunnel_rcv counts the padding behind an inner packet",
		counts: func(_, inner packet.IPv4) tally {
			if n := len(inner) - inner.TotalLength(); n > 0 {
				return tally{"rx_bytes": int64(n)}
			}
			return nil
		},
	},
}
