package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"goipip/internal/packet"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// protoIPIPOld is what /etc/protocols calls ipip: not the protocol of RFC 2003, which is
// ipencap there.
const protoIPIPOld = 94

// nftFamilies are the families whose chains IPv4 packets pass.
var nftFamilies = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4:   "ip",
	nftables.TableFamilyINet:   "inet",
	nftables.TableFamilyNetdev: "netdev",
}

// nftHooks has the hooks by number, which are others at devices.
var nftHooks = map[bool]map[nftables.ChainHook]hook{
	false: {
		*nftables.ChainHookPrerouting: hookPrerouting, *nftables.ChainHookInput: hookInput, *nftables.ChainHookForward: hookForward,
		*nftables.ChainHookOutput: hookOutput, *nftables.ChainHookPostrouting: hookPostrouting,
	},
	true: {*nftables.ChainHookIngress: hookIngress, *nftables.ChainHookEgress: hookEgress},
}

// nftTable is a table of nftables while it is read.
type nftTable struct {
	conn   *nftables.Conn
	table  *nftables.Table
	family string
	sets   map[string]nftSet
}

type nftSet struct {
	*nftables.Set
	elements []nftables.SetElement
}

// readNFTables returns a ruleset for each table of nftables that IPv4 packets may pass.
func readNFTables() (all []ruleset, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		return nil, nil // a kernel without nftables
	}
	if err != nil {
		return nil, fmt.Errorf("list the tables of nftables: %w", err)
	}
	for _, t := range tables {
		family, ok := nftFamilies[t.Family]
		if !ok {
			continue
		}
		s, err := (&nftTable{conn: conn, table: t, family: family, sets: map[string]nftSet{}}).read()
		if err != nil {
			return nil, fmt.Errorf("read the table %s %s of nftables: %w", family, t.Name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (t *nftTable) read() (ruleset, error) {
	sets, err := t.conn.GetSets(t.table)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		elements, err := t.conn.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		t.sets[s.Name] = nftSet{s, elements}
	}
	chains, err := t.conn.ListChainsOfTableFamily(t.table.Family)
	if err != nil {
		return nil, err
	}
	var devices map[string][]string
	if t.family == "netdev" {
		if devices, err = chainDevices(); err != nil {
			return nil, err
		}
	}
	all := ruleset{}
	for _, c := range chains {
		if c.Table.Name != t.table.Name {
			continue
		}
		rules, err := t.conn.GetRules(t.table, c)
		if err != nil {
			return nil, err
		}
		all[c.Name] = t.chain(c, rules)
		if t.family == "netdev" && c.Hooknum != nil {
			all[c.Name].base.early, all[c.Name].base.devices = true, devices[t.table.Name+" "+c.Name]
		}
	}
	return all, nil
}

// chainDevices returns the devices of the chains at devices, by the names of table and chain, which
// the library does not read.
func chainDevices() (map[string][]string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(nftables.TableFamilyNetdev)})
	chains, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN)
	if err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, c := range chains {
		attrs := nftAttributes(c[min(nl.SizeofNfgenmsg, len(c)):])
		key := unix.ByteSliceToString(attrs[unix.NFTA_CHAIN_TABLE]) + " " + unix.ByteSliceToString(attrs[unix.NFTA_CHAIN_NAME])
		hook := nftAttributes(attrs[unix.NFTA_CHAIN_HOOK])
		if one, ok := hook[unix.NFTA_HOOK_DEV]; ok {
			all[key] = []string{unix.ByteSliceToString(one)}
			continue
		}
		list, err := nl.ParseRouteAttr(hook[nftaHookDevs])
		if err != nil {
			return nil, err
		}
		for _, device := range list {
			all[key] = append(all[key], unix.ByteSliceToString(device.Value))
		}
	}
	return all, nil
}

// NFTA_HOOK_DEVS of linux/netfilter/nf_tables.h, and the flags of linux/netlink.h in a type.
const (
	nftaHookDevs = 4
	nlaFlags     = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
)

// nftAttributes returns attributes by type.
func nftAttributes(b []byte) map[uint16][]byte {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	all := map[uint16][]byte{}
	for _, a := range list {
		all[a.Attr.Type&^nlaFlags] = a.Value
	}
	return all
}

func (t *nftTable) chain(c *nftables.Chain, rules []*nftables.Rule) *chain {
	place := []string{t.family, t.table.Name, c.Name}
	out := &chain{name: "chain " + strings.Join(place, " ")}
	if c.Hooknum != nil {
		at := nftHooks[t.family == "netdev"][*c.Hooknum]
		out.base = &base{
			hook:  at,
			drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
			early: (at == hookPrerouting || at == hookOutput) && *c.Priority <= *nftables.ChainPriorityConntrack,
			insert: func(f *flow) string {
				return command(slices.Concat([]string{"nft", "insert", "rule"}, place, nftMatch(f), []string{"accept"})...)
			},
		}
	}
	for _, r := range rules {
		n := rule{name: fmt.Sprintf("rule with handle %d", r.Handle)}
		n.eval = func(f *flow) (truth, verdict) { return t.eval(r.Exprs, f) }
		var simple bool
		if n.wrong94, simple = t.wrong94(r.Exprs); simple {
			n.replace94 = command(slices.Concat([]string{"nft", "replace", "rule"}, place,
				[]string{"handle", strconv.FormatUint(r.Handle, 10), "ip", "protocol", "4", "accept"})...)
		}
		out.rules = append(out.rules, n)
	}
	return out
}

// nftMatch is the conditions of a rule that accepts a flow. The remote end says enough of its packets.
func nftMatch(f *flow) []string {
	switch {
	case f.in != nil && f.out != nil:
		return []string{"iifname", f.in.name, "oifname", f.out.name}
	case f.in != nil && f.source.IsValid():
		return []string{"ip", "saddr", f.source.String(), "ip", "protocol", "4"}
	case f.out != nil && f.dest.IsValid():
		return []string{"ip", "daddr", f.dest.String(), "ip", "protocol", "4"}
	}
	return []string{"ip", "protocol", "4"}
}

// wrong94 reports whether a rule lets protocol 94 pass, but not 4, and whether it says nothing else.
func (t *nftTable) wrong94(exprs []expr.Any) (wrong, simple bool) {
	protocol := map[uint32]bool{} // registers that hold it
	passes := false
	others := 0
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			protocol[e.Register] = e.Key == expr.MetaKeyL4PROTO
			if e.Key != expr.MetaKeyL4PROTO && e.Key != expr.MetaKeyNFPROTO {
				others++
			}
		case *expr.Payload:
			protocol[e.DestRegister] = e.Base == expr.PayloadBaseNetworkHeader && e.Offset == ipv4ProtocolAt && e.Len == 1
			if !protocol[e.DestRegister] {
				others++
			}
		case *expr.Cmp:
			wrong = wrong || protocol[e.Register] && e.Op == expr.CmpOpEq && bytes.Equal(e.Data, []byte{protoIPIPOld})
		case *expr.Lookup:
			others++
			if protocol[e.SourceRegister] && !e.Invert && !e.IsDestRegSet {
				wrong = wrong || t.sets[e.SetName].has([]byte{protoIPIPOld}) == yes && t.sets[e.SetName].has([]byte{packet.ProtoIPIP}) == no
			}
		case *expr.Verdict:
			passes = e.Kind != expr.VerdictDrop
			if e.Kind != expr.VerdictAccept {
				others++
			}
		case *expr.Counter:
		default:
			others++
		}
	}
	return wrong && passes, wrong && passes && others == 0
}
