package doctor

import (
	"net/netip"
	"slices"

	"goipip/internal/packet"
)

// truth is what is known of a condition.
type truth uint8

// In this order, the truth of several conditions together is the least.
const (
	no    truth = iota
	maybe       // it depends on what a flow does not say
	yes
)

// flow is packets as a firewall sees them.
type flow struct {
	hooks        []hook     // that they pass
	protocol     uint8      // 0 for any
	in, out      *link      // by which they come and leave; nil for none, the zero link for any
	source, dest netip.Addr // not valid for any
	mark         uint32     // of what this host sends
	reply        bool       // connection tracking knows the addresses, since a packet went the other way before
	early        bool       // connection tracking has not seen the packet yet
}

// state is the packet's connection state. Where tracking has not seen it, that is invalid
// (nft_ct_get_eval in net/netfilter/nft_ct.c).
func (f *flow) state() connState {
	switch {
	case f.early:
		return ctInvalid
	case f.reply:
		return ctEstablished
	}
	return ctNew
}

// connState is a bit of NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h.
type connState uint32

const (
	ctInvalid     connState = 1
	ctEstablished connState = 2
	ctNew         connState = 8
)

// connStates are the names of states in iptables.
var connStates = map[connState]string{ctInvalid: "INVALID", ctEstablished: "ESTABLISHED", ctNew: "NEW"}

// link names a link.
type link struct {
	index int
	name  string
}

// outerFrom returns the flow of outer packets from a remote end, by a device.
func outerFrom(remote, local netip.Addr, device link) flow {
	return flow{
		hooks: []hook{hookIngress, hookPrerouting, hookInput}, protocol: packet.ProtoIPIP,
		in: &device, source: remote, dest: local,
	}
}

// outerTo returns the flow of outer packets to a remote end.
func outerTo(remote, local netip.Addr, device link, mark uint32) flow {
	return flow{
		hooks: []hook{hookOutput, hookPostrouting, hookEgress}, protocol: packet.ProtoIPIP,
		out: &device, source: local, dest: remote, mark: mark,
	}
}

// forwarded returns the flow of all packets between two links.
func forwarded(in, out link) flow { return flow{hooks: []hook{hookForward}, in: &in, out: &out} }

// at reports whether the flow may pass one of a chain's devices; none stands for all.
func (f *flow) at(devices []string) bool {
	by := f.in
	if by == nil {
		by = f.out
	}
	return len(devices) == 0 || *by == link{} || slices.Contains(devices, by.name)
}

// hook is one of netfilter's.
type hook string

const (
	hookIngress     hook = "ingress"
	hookPrerouting  hook = "prerouting"
	hookInput       hook = "input"
	hookForward     hook = "forward"
	hookOutput      hook = "output"
	hookPostrouting hook = "postrouting"
	hookEgress      hook = "egress"
)

// verdict is what a rule does with a packet that it matches.
type verdict struct {
	kind  verdictKind
	chain string // to jump to
}

type verdictKind uint8

const (
	next verdictKind = iota // rule
	accept
	drop
	queue // a program in user space decides
	jump
	goTo
	back // to the chain that jumped here
)

// rule is a rule of a firewall.
type rule struct {
	name string // as its listing shows it
	eval func(*flow) (truth, verdict)
	// wrong94 reports that the rule is for protocol 94, and lets it pass; replace94 is the
	// command that makes it one for protocol 4, if there is one.
	wrong94   bool
	replace94 string
}

// chain is a list of rules.
type chain struct {
	name  string // for people
	rules []rule
	base  *base // nil for one that others jump to
}

// base is what makes a chain one that packets enter by themselves.
type base struct {
	hook  hook
	drops bool // what no rule decides
	early bool // connection tracking comes later
	// devices are those of a chain at devices; empty for any.
	devices []string
	// insert returns the command that makes the chain accept packets of a flow.
	insert func(*flow) string
}

// ruleset is a set of chains that can jump to each other.
type ruleset map[string]*chain

// outcome is what can become of a packet in a chain.
type outcome struct {
	accepted, dropped, through bool
	by                         string // the first rule that may drop it
}

func (o *outcome) add(other outcome) {
	o.accepted = o.accepted || other.accepted
	o.drop(other.dropped, other.by)
}

func (o *outcome) drop(dropped bool, by string) {
	if dropped && !o.dropped {
		o.dropped, o.by = true, by
	}
}

// enter returns what becomes of f in a base chain.
func (s ruleset) enter(c *chain, f flow) outcome {
	f.early = c.base.early
	o := s.walk(c, &f, map[*chain]outcome{})
	if o.through {
		o.accepted = o.accepted || !c.base.drops
		o.drop(c.base.drops, "policy drop")
	}
	return o
}

// walk returns what becomes of f in a chain, and remembers it in seen.
func (s ruleset) walk(c *chain, f *flow, seen map[*chain]outcome) (o outcome) {
	if known, ok := seen[c]; ok {
		return known
	}
	seen[c] = outcome{through: true} // for a chain that jumps to itself, which the kernel refuses
	defer func() { seen[c] = o }()
	for _, r := range c.rules {
		m, v := r.eval(f)
		if m == no {
			continue
		}
		var decided bool
		switch v.kind {
		case accept:
			o.accepted, decided = true, true
		case drop:
			o.drop(true, r.name)
			decided = true
		case queue:
			o.accepted, decided = true, true
			o.drop(true, r.name)
		case back:
			o.through, decided = true, true
		case jump, goTo:
			to, ok := s[v.chain]
			if !ok {
				continue
			}
			sub := s.walk(to, f, seen)
			o.add(sub)
			o.through = o.through || v.kind == goTo && sub.through
			decided = v.kind == goTo || !sub.through
		}
		if decided && m == yes {
			return o
		}
	}
	o.through = true
	return o
}

// blocker is a base chain that drops packets of a flow.
type blocker struct {
	chain  string
	by     string // the rule
	kind   blockKind
	insert string
}

// blockKind is how much a chain drops.
type blockKind uint8

const (
	dropsAll  blockKind = iota
	dropsNew            // all but replies
	dropsSome           // as far as can be told
)

// blockers returns the base chains that drop packets of f.
func (s ruleset) blockers(f flow) (list []blocker) {
	for _, h := range f.hooks {
		for _, c := range s {
			if c.base == nil || c.base.hook != h || !f.at(c.base.devices) {
				continue
			}
			later := f
			later.reply = true
			o := s.enter(c, f)
			if !o.dropped {
				continue
			}
			b := blocker{chain: c.name, by: o.by, kind: dropsAll, insert: c.base.insert(&f)}
			switch known := s.enter(c, later); {
			case o.accepted:
				b.kind = dropsSome
			case known.accepted && !known.dropped:
				b.kind = dropsNew
			}
			list = append(list, b)
		}
	}
	return list
}

// wrong94 returns the rules that let protocol 94 pass.
func (s ruleset) wrong94() (list []rule) {
	for _, c := range s {
		for _, r := range c.rules {
			if r.wrong94 {
				r.name = c.name + ", " + r.name
				list = append(list, r)
			}
		}
	}
	return list
}
