package doctor

import (
	"bytes"
	"slices"
	"syscall"

	"goipip/internal/packet"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eval reports whether a flow matches a rule, and what that does then.
func (t *nftTable) eval(exprs []expr.Any, f *flow) (truth, verdict) {
	m := nftMachine{table: t, flow: f, header: f.header()}
	all, v := yes, verdict{}
	for _, e := range exprs {
		match, does := m.step(e)
		if match == no {
			return no, v
		}
		all = min(all, match)
		if does.kind != next {
			return all, does
		}
	}
	return all, v
}

// nftMachine is the registers of nftables, of 64 bytes, for the rule that is evaluated.
type nftMachine struct {
	table  *nftTable
	flow   *flow
	header known
	bytes  [64]byte
	knows  [64]bool
}

// known is bytes, some of which are not known.
type known struct {
	bytes []byte
	knows []bool
}

// certain returns bytes that are all known.
func certain(b []byte) known {
	k := known{b, make([]bool, len(b))}
	for i := range k.knows {
		k.knows[i] = true
	}
	return k
}

// Offsets in an IPv4 header are of package packet; netfilter's rules name them too.
const ipv4ProtocolAt = 9

// header returns the IPv4 header of a packet of the flow.
func (f *flow) header() known {
	p := make(packet.IPv4, packet.IPv4HdrLen)
	p.InitHeader()
	p.SetProtocol(f.protocol)
	k := known{p, make([]bool, len(p))}
	k.knows[0], k.knows[ipv4ProtocolAt] = true, f.protocol != 0
	addresses := len(p) - 8
	if f.source.IsValid() {
		p.SetSource(f.source.As4())
		copy(k.knows[addresses:], certain(p[:4]).knows)
	}
	if f.dest.IsValid() {
		p.SetDestination(f.dest.As4())
		copy(k.knows[addresses+4:], certain(p[:4]).knows)
	}
	return k
}

// at returns where a register begins: the four of 16 bytes have the numbers 1 to 4, those of
// 4 bytes begin with 8 (linux/netfilter/nf_tables.h).
func at(register uint32) int {
	const reg32 = 8
	if register >= reg32 {
		return int(register-reg32) * 4 % 64
	}
	return int(max(register, 1)-1) * 16 % 64
}

// store fills whole words, the last one with zeroes, as the kernel does.
func (m *nftMachine) store(register uint32, k known) {
	start := at(register)
	n := copy(m.bytes[start:], k.bytes)
	copy(m.knows[start:], k.knows[:n])
	for i := start + n; i%4 != 0; i++ {
		m.bytes[i], m.knows[i] = 0, true
	}
}

func (m *nftMachine) forget(register uint32, n int) {
	n = min(n, len(m.bytes))
	m.store(register, known{make([]byte, n), make([]bool, n)})
}

// load returns a register, and whether all of it is known.
func (m *nftMachine) load(register uint32, n int) ([]byte, bool) {
	start := at(register)
	end := min(start+n, len(m.bytes))
	return m.bytes[start:end], !slices.Contains(m.knows[start:end], false)
}

// step executes one expression.
func (m *nftMachine) step(e expr.Any) (truth, verdict) {
	switch e := e.(type) {
	case *expr.Verdict:
		return yes, nftVerdict(e)
	case *expr.Reject:
		return yes, verdict{kind: drop}
	case *expr.Queue:
		return yes, verdict{kind: queue}
	case *expr.Target:
		if e.Name == "REJECT" || e.Name == "DROP" {
			return yes, verdict{kind: drop}
		}
	case *expr.Match:
		return m.match(e), verdict{}
	case *expr.Meta:
		return m.meta(e), verdict{}
	case *expr.Payload:
		end := int(e.Offset) + int(e.Len)
		if e.OperationType == expr.PayloadLoad && e.Base == expr.PayloadBaseNetworkHeader && end <= len(m.header.bytes) {
			m.store(e.DestRegister, known{m.header.bytes[e.Offset:end], m.header.knows[e.Offset:end]})
		} else if e.OperationType == expr.PayloadLoad {
			m.forget(e.DestRegister, int(e.Len))
		}
	case *expr.Ct:
		m.ct(e)
	case *expr.Immediate:
		m.store(e.Register, certain(e.Data))
	case *expr.Bitwise:
		m.bitwise(e)
	case *expr.Cmp:
		b, ok := m.load(e.Register, len(e.Data))
		return when(ok, compare(e.Op, bytes.Compare(b, e.Data))), verdict{}
	case *expr.Range:
		b, ok := m.load(e.Register, len(e.FromData))
		in := bytes.Compare(b, e.FromData) >= 0 && bytes.Compare(b, e.ToData) <= 0
		return when(ok, in == (e.Op == expr.CmpOpEq)), verdict{}
	case *expr.Lookup:
		return m.lookup(e)
	case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Dynset, *expr.NAT, *expr.Masq, *expr.Redir, *expr.FlowOffload, *expr.Dup:
	default: // such as limit, quota, fib
		m.knows = [64]bool{}
		return maybe, verdict{}
	}
	return yes, verdict{}
}

// when is the truth of a condition that may depend on something unknown.
func when(ok, is bool) truth {
	switch {
	case !ok:
		return maybe
	case is:
		return yes
	}
	return no
}

func compare(op expr.CmpOp, n int) bool {
	switch op {
	case expr.CmpOpEq:
		return n == 0
	case expr.CmpOpNeq:
		return n != 0
	case expr.CmpOpLt:
		return n < 0
	case expr.CmpOpLte:
		return n <= 0
	case expr.CmpOpGt:
		return n > 0
	}
	return n >= 0
}

func nftVerdict(v *expr.Verdict) verdict {
	switch v.Kind {
	case expr.VerdictAccept:
		return verdict{kind: accept}
	case expr.VerdictDrop:
		return verdict{kind: drop}
	case expr.VerdictQueue:
		return verdict{kind: queue}
	case expr.VerdictJump:
		return verdict{kind: jump, chain: v.Chain}
	case expr.VerdictGoto:
		return verdict{kind: goTo, chain: v.Chain}
	case expr.VerdictReturn:
		return verdict{kind: back}
	}
	return verdict{}
}

// meta loads what the kernel knows of a packet.
func (m *nftMachine) meta(e *expr.Meta) truth {
	if e.SourceRegister {
		return yes // it sets something
	}
	f := m.flow
	switch e.Key {
	case expr.MetaKeyL4PROTO:
		m.store(e.Register, known{[]byte{f.protocol}, []bool{f.protocol != 0}})
	case expr.MetaKeyNFPROTO:
		m.store(e.Register, certain([]byte{syscall.AF_INET}))
	case expr.MetaKeyPROTOCOL:
		m.store(e.Register, certain([]byte{0x08, 0x00})) // ETH_P_IP
	case expr.MetaKeyIIFNAME, expr.MetaKeyIIF, expr.MetaKeyOIFNAME, expr.MetaKeyOIF:
		return m.device(e)
	case expr.MetaKeyMARK:
		if f.in != nil {
			m.forget(e.Register, 4)
		} else {
			m.store(e.Register, certain(native(f.mark)))
		}
	default:
		m.forget(e.Register, 16)
	}
	return yes
}

// device loads the device by which a packet comes or leaves. A rule about one where there is none
// matches nothing.
func (m *nftMachine) device(e *expr.Meta) truth {
	by := m.flow.out
	if e.Key == expr.MetaKeyIIFNAME || e.Key == expr.MetaKeyIIF {
		by = m.flow.in
	}
	switch {
	case by == nil:
		return no
	case *by == link{}:
		m.forget(e.Register, unix.IFNAMSIZ)
	case e.Key == expr.MetaKeyIIFNAME || e.Key == expr.MetaKeyOIFNAME:
		b := make([]byte, unix.IFNAMSIZ)
		copy(b, by.name)
		m.store(e.Register, certain(b))
	default:
		m.store(e.Register, certain(native(uint32(by.index))))
	}
	return yes
}

func (m *nftMachine) ct(e *expr.Ct) {
	switch {
	case e.SourceRegister:
	case e.Key == expr.CtKeySTATE:
		m.store(e.Register, certain(native(uint32(m.flow.state()))))
	default:
		m.forget(e.Register, 16)
	}
}

func (m *nftMachine) bitwise(e *expr.Bitwise) {
	start, end := at(e.SourceRegister), at(e.DestRegister)
	for i := range min(int(e.Len), len(e.Mask), len(e.Xor), len(m.bytes)-max(start, end)) {
		m.knows[end+i] = m.knows[start+i] || e.Mask[i] == 0
		m.bytes[end+i] = m.bytes[start+i]&e.Mask[i] ^ e.Xor[i]
	}
}

// lookup looks a register up in a set or map.
func (m *nftMachine) lookup(e *expr.Lookup) (truth, verdict) {
	set, ok := m.table.sets[e.SetName]
	if !ok || len(set.elements) > 0 && len(set.elements[0].Key) == 0 {
		return maybe, verdict{}
	}
	length := 4
	if len(set.elements) > 0 {
		length = len(set.elements[0].Key)
	}
	key, known := m.load(e.SourceRegister, length)
	if !known && len(set.elements) > 0 {
		if set.IsMap && e.DestRegister == 0 {
			return maybe, verdict{kind: queue} // one of its verdicts
		}
		m.forget(max(e.DestRegister, 1), 16)
		return maybe, verdict{}
	}
	if !set.IsMap {
		return when(true, set.has(key) == yes != e.Invert), verdict{}
	}
	el, ok := set.find(key)
	switch {
	case !ok:
		return no, verdict{}
	case e.DestRegister == 0:
		return yes, mapVerdict(el.Val)
	}
	m.store(e.DestRegister, certain(el.Val))
	return yes, verdict{}
}

// mapVerdict returns the verdict that a map has for a key, which the library leaves as attributes
// (NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN of linux/netfilter/nf_tables.h).
func mapVerdict(val []byte) verdict {
	attrs, err := nl.ParseRouteAttr(val)
	if err != nil {
		return verdict{kind: queue} // any
	}
	var v expr.Verdict
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.NFTA_VERDICT_CODE:
			if len(a.Value) == 4 {
				v.Kind = expr.VerdictKind(int32(binaryutil.BigEndian.Uint32(a.Value)))
			}
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = unix.ByteSliceToString(a.Value)
		}
	}
	return nftVerdict(&v)
}

// has reports whether a set has a key.
func (s nftSet) has(key []byte) truth {
	_, ok := s.find(key)
	return when(true, ok)
}

// find returns the element for a key.
func (s nftSet) find(key []byte) (found nftables.SetElement, ok bool) {
	if s.Set == nil {
		return found, false
	}
	for _, el := range s.elements {
		n := min(len(key), len(el.Key))
		switch {
		case len(el.KeyEnd) > 0: // a concatenation, of which each part is in a range
			if bytes.Compare(el.Key[:n], key[:n]) <= 0 && bytes.Compare(key[:n], el.KeyEnd[:min(n, len(el.KeyEnd))]) <= 0 {
				return el, true
			}
		case !s.Interval:
			if bytes.Equal(el.Key[:n], key[:n]) {
				return el, true
			}
		case bytes.Compare(el.Key[:n], key[:n]) <= 0:
			// An interval reaches to the next element, which may be the end of none. One begins
			// where another ends.
			order := bytes.Compare(el.Key, found.Key)
			if found.Key == nil || order > 0 || order == 0 && found.IntervalEnd {
				found = el
			}
		}
	}
	return found, found.Key != nil && !found.IntervalEnd
}

// match is a match of xtables, as iptables-nft makes them.
func (m *nftMachine) match(e *expr.Match) truth {
	const stateOnly = 1 // XT_CONNTRACK_STATE of linux/netfilter/xt_conntrack.h
	var flags, invert, mask uint16
	switch i := e.Info.(type) {
	case *xt.ConntrackMtinfo3:
		flags, invert, mask = i.MatchFlags, i.InvertFlags, i.StateMask
	case *xt.ConntrackMtinfo2:
		flags, invert, mask = i.MatchFlags, i.InvertFlags, i.StateMask
	}
	switch {
	case e.Name == "comment":
		return yes
	case flags == stateOnly:
		return when(true, mask&uint16(m.flow.state()) != 0 != (invert&stateOnly != 0))
	}
	return maybe
}

// native returns n in the order of this machine.
func native(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }
