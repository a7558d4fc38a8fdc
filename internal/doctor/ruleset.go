package doctor

import "net/netip"

// truth is what is known of a condition.
type truth uint8

// In this order, the truth of several conditions together is the least.
const (
	no    truth = iota
	maybe       // it depends on what a flow does not say
	yes
)

// flow is a packet of protocol 4 as a firewall sees it.
type flow struct {
	inbound bool
	device  link       // by which it comes or leaves; the zero link for any
	source  netip.Addr // not valid for any
	dest    netip.Addr
	mark    uint32 // of one that leaves
	reply   bool   // connection tracking knows the pair of addresses, since a packet went the other way before
}

// link names a link.
type link struct {
	index int
	name  string
}

// hooks are those of netfilter that the flow passes.
func (f *flow) hooks() []hook {
	if f.inbound {
		return []hook{hookIngress, hookPrerouting, hookInput}
	}
	return []hook{hookOutput, hookPostrouting, hookEgress}
}

// peer is the other host's address.
func (f *flow) peer() netip.Addr {
	if f.inbound {
		return f.source
	}
	return f.dest
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
	hook   hook
	drops  bool   // what no rule decides
	device string // of a chain at a device; empty otherwise
	// insert returns the command that makes the chain accept packets of a flow.
	insert func(*flow) string
}

// ruleset is a set of chains that can jump to each other.
type ruleset map[string]*chain

// maxJumps is the kernel's NFT_JUMP_STACK_SIZE.
const maxJumps = 16

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
func (s ruleset) enter(c *chain, f *flow) outcome {
	o := s.walk(c, f, 0)
	if o.through {
		o.accepted = o.accepted || !c.base.drops
		o.drop(c.base.drops, "policy drop")
	}
	return o
}

func (s ruleset) walk(c *chain, f *flow, depth int) (o outcome) {
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
			if !ok || depth == maxJumps {
				continue
			}
			sub := s.walk(to, f, depth+1)
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
	for _, h := range f.hooks() {
		for _, c := range s {
			if c.base == nil || c.base.hook != h || c.base.device != "" && f.device.name != "" && c.base.device != f.device.name {
				continue
			}
			first, later := f, f
			later.reply = true
			o := s.enter(c, &first)
			if !o.dropped {
				continue
			}
			b := blocker{chain: c.name, by: o.by, kind: dropsAll, insert: c.base.insert(&first)}
			switch known := s.enter(c, &later); {
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
