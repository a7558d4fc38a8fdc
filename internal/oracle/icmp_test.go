package oracle_test

import (
	"fmt"
	"testing"
	"time"

	"goipip/internal/packet"
)

// learnTime is how long goipip may take to learn what the kernel knows: its
// watcher asks.
const learnTime = 5 * time.Second

// expireTime is how long path MTUs last in both devices, instead of ten minutes.
const expireTime = 4 * time.Second

// story is a sequence of inputs that the devices remember something of.
type story struct {
	rule  string
	name  string
	route bool // what they remember is of the route
	steps []step
}

// step is one input. What a device does about a probe it does as often as it is
// asked, so there is time to learn.
type step struct {
	input
	probe bool
	until bool // it is sent until both devices pass it
}

// teller collects stories.
type teller struct {
	tags    *tags
	stories []story
}

// message describes an ICMP error about an outer packet.
type message struct {
	kind, code uint8
	word       uint32              // the second one of the ICMP header
	from       string              // empty for the gateway
	quote      int                 // bytes of the outer packet; 0 is its header and 8 more
	about      func(outer *header) // changes the outer packet
	spoil      bool                // its checksum is wrong
}

// input returns the message as the devices get it.
func (m message) input(tags *tags) input {
	tag := tags.next()
	inside := ofEncap(tag)
	about := header{id: tag, ttl: 60, fragment: df, protocol: packet.ProtoIPIP, src: localAddr.As4(), dst: remoteAddr.As4()}
	if m.about != nil {
		m.about(&about)
	}
	quote := m.quote
	if quote == 0 {
		quote = packet.IPv4HdrLen + 8
	}
	h := header{id: tag, ttl: 64, tos: 0xc0, protocol: packet.ProtoICMP, src: gatewayAddr.As4(), dst: localAddr.As4()}
	if m.from != "" {
		h.src = addr4(m.from)
	}
	p := h.build(icmpError(m.kind, m.code, m.word, about.build(inside.build(udp(inside, 100))), quote))
	if m.spoil {
		p[len(p)-1] ^= 1
	}
	return input{name: fmt.Sprintf("ICMP %d/%d", m.kind, m.code), dir: decap, tag: tag, packets: []packet.IPv4{p}}
}

// into returns a packet into the tunnel, of n bytes.
func (t *teller) into(n int, fragment uint16) input {
	tag := t.tags.next()
	h := ofEncap(tag)
	h.fragment = fragment
	return input{
		name: fmt.Sprintf("%d bytes into the tunnel, fragment field %#x", n, fragment),
		dir:  encap, tag: tag, packets: []packet.IPv4{h.build(udp(h, n-packet.IPv4HdrLen-packet.UDPHdrLen))},
	}
}

// soft tells of messages, and of more packets into the tunnel than those.
func (t *teller) soft(rule, name string, messages ...message) {
	s := story{rule: rule, name: name}
	for _, m := range messages {
		s.steps = append(s.steps, step{input: m.input(t.tags)})
	}
	for range len(messages) + 1 {
		s.steps = append(s.steps, step{input: t.into(100, 0)})
	}
	t.stories = append(t.stories, s)
}

// path tells of one message, and of packets of many lengths.
func (t *teller) path(rule, name string, m message, lengths ...int) {
	s := story{rule: rule, name: name, route: true, steps: []step{{input: m.input(t.tags)}}}
	for _, n := range append(lengths, 100, cableMTU-packet.IPv4HdrLen) {
		for _, flags := range []uint16{df, 0} {
			s.steps = append(s.steps, step{input: t.into(n, flags), probe: true})
		}
	}
	t.stories = append(t.stories, s)
}

// all tells of all there is.
func (t *teller) all() []story {
	for code := range uint8(17) {
		if code != 4 {
			t.soft("E", fmt.Sprintf("3/%d", code), message{kind: 3, code: code})
		}
	}
	for code := range uint8(3) {
		t.soft("E", fmt.Sprintf("11/%d", code), message{kind: 11, code: code})
		t.soft("E", fmt.Sprintf("12/%d", code), message{kind: 12, code: code})
	}
	t.soft("E", "4/0", message{kind: 4})
	for _, kind := range []uint8{0, 1, 2, 6, 7, 9, 10, 13, 17, 40, 42, 255} {
		t.soft("E", fmt.Sprintf("%d/0", kind), message{kind: kind})
	}
	t.quotes()
	t.soft("T8", "three messages", message{kind: 3, code: 1}, message{kind: 3, code: 0}, message{kind: 3, code: 3})
	t.paths()
	return t.stories
}

// quotes tells of messages about other packets, or too little of one.
func (t *teller) quotes() {
	for name, m := range map[string]message{
		"from the far end":        {from: remoteAddr.String()},
		"from somebody":           {from: "8.8.8.8"},
		"quotes it all":           {quote: 1000},
		"quotes the header":       {quote: 20},
		"quotes less":             {quote: 19},
		"quotes nothing":          {quote: 1},
		"is damaged":              {spoil: true},
		"about another end":       {about: func(h *header) { h.dst = addr4("192.168.8.3") }},
		"about another beginning": {about: func(h *header) { h.src = addr4("10.1.0.1") }},
		"about the way back":      {about: func(h *header) { h.src, h.dst = h.dst, h.src }},
		"about UDP":               {about: func(h *header) { h.protocol = packet.ProtoUDP }},
		"about protocol 255":      {about: func(h *header) { h.protocol = protoRaw }},
		"about a later fragment":  {about: func(h *header) { h.fragment = 100 }},
		"about a first fragment":  {about: func(h *header) { h.fragment = mf }},
		"about one with options":  {about: func(h *header) { h.options = []byte{optNop, optNop, optNop, optEnd} }, quote: 32},
	} {
		m.kind, m.code = 3, 1
		t.soft("E", "3/1 "+name, m)
	}
}

// paths tells of path MTUs, and of redirects.
func (t *teller) paths() {
	for _, mtu := range []int{1500, 1499, 1400, 1000, 576, 552, 551, 300, 68, 67, 20, 0, 2000, 65535} {
		want := max(min(mtu, cableMTU), 552) // net.ipv4.route.min_pmtu
		t.path("T7", fmt.Sprintf("path MTU %d", mtu), message{kind: 3, code: 4, word: uint32(mtu)},
			want-packet.IPv4HdrLen-4, want-packet.IPv4HdrLen, want-packet.IPv4HdrLen+1)
	}
	for _, mtus := range [][2]uint32{{1400, 1450}, {1400, 1300}, {1400, 1400}} {
		s := story{rule: "T6", name: fmt.Sprintf("path MTU %d, then %d", mtus[0], mtus[1]), route: true}
		for _, mtu := range mtus {
			s.steps = append(s.steps,
				step{input: message{kind: 3, code: 4, word: mtu}.input(t.tags)},
				step{input: t.into(1290, df), probe: true},
				step{input: t.into(1390, df), probe: true},
				step{input: t.into(1440, df), probe: true})
		}
		t.stories = append(t.stories, s)
	}
	t.stories = append(t.stories, story{rule: "T6", name: "path MTU expires", route: true, steps: []step{
		{input: message{kind: 3, code: 4, word: 1400}.input(t.tags)},
		{input: t.into(1480, df), probe: true},
		{input: t.into(1480, df), until: true},
		{input: t.into(1480, df)},
	}})
	t.path("T7", "path MTU without a whole quote", message{kind: 3, code: 4, word: 1400, quote: 20}, 1380, 1381)
	t.path("T7", "path MTU to another", message{kind: 3, code: 4, word: 1400, about: func(h *header) { h.dst = addr4("192.168.8.3") }}, 1380, 1381)
	for code := range uint8(4) {
		t.path("E", fmt.Sprintf("redirect 5/%d", code), message{kind: 5, code: code, word: word(detourAddr.AsSlice(), 0)})
	}
}

// expireScript sets expireTime, and makes routes forget what they know.
var expireScript = fmt.Sprintf("set -e\necho %d >/proc/sys/net/ipv4/route/mtu_expires\n", int(expireTime.Seconds())) + routeScript

// tellings is how often a story is told until both do the same: goipip hears of an ICMP error
// a moment after it came, and a packet on the fast path may be sooner.
const tellings = 6

// tell runs a story on devices that have forgotten all others, and again where they did not
// do the same.
func (r *rig) tell(t *testing.T, s story) {
	t.Run(s.rule+"/"+s.name, func(t *testing.T) {
		r.begin(t)
		var list []mismatch
		for range tellings {
			if list = r.follow(s); len(list) == 0 {
				break
			}
		}
		r.report(list)
	})
}

// forget makes both devices forget a story, which is no more than three messages
// long.
func (r *rig) forget(s story) {
	r.t.Helper()
	if s.route {
		r.script(routeScript)
	}
	teller := teller{tags: &r.tags}
	r.exchange([]input{teller.into(100, 0), teller.into(100, 0), teller.into(100, 0)})
}

func (r *rig) follow(s story) (list []mismatch) {
	r.t.Helper()
	for _, step := range s.steps {
		m, ok := r.do(step.input)
		for start := time.Now(); step.open(&m, ok) && time.Since(start) < step.patience(); {
			m, ok = r.do(step.input)
		}
		if !ok || r.late[step.tag] {
			list = append(list, m)
		}
	}
	r.forget(s)
	clear(r.late)
	return list
}

// open reports whether another try may help.
func (s *step) open(m *mismatch, ok bool) bool {
	switch {
	case s.until:
		return !ok || !allOf(m.outs[0], fromTunnel)
	case s.probe:
		return !ok
	}
	return false
}

func (s *step) patience() time.Duration {
	if s.until {
		return 2 * expireTime
	}
	return learnTime
}

// do sends one input, and nothing else into the tunnel.
func (r *rig) do(in input) (m mismatch, ok bool) {
	r.t.Helper()
	r.put([]input{in}, r.tags.arrivals())
	return r.settle(in, in.dir == encap)
}
