package engine

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// filters tells of what would see the packets of a raw socket, and not those of a
// packet socket: nil for nothing.
func (h *host) filters() error {
	for _, look := range []func() (string, error){h.nftables, h.iptables, h.ipsec} {
		found, err := look()
		if err != nil {
			return fmt.Errorf("cannot tell whether packets are filtered: %w", err)
		}
		if found != "" {
			return errors.New(found)
		}
	}
	return nil
}

// Numbers of linux/netlink.h, linux/netfilter/nf_tables.h and linux/netfilter.h.
const (
	nlaFlags        = 0xc000              // NLA_F_NESTED, NLA_F_NET_BYTEORDER
	nfnlNFTables    = 10                  // NFNL_SUBSYS_NFTABLES
	nftGetChain     = nfnlNFTables<<8 | 4 // NFT_MSG_GETCHAIN
	nftNewChain     = nfnlNFTables<<8 | 3
	nftChainHook    = 4 // NFTA_CHAIN_HOOK
	nftHookNumber   = 1 // NFTA_HOOK_HOOKNUM
	hookLocalOut    = 3 // NF_INET_LOCAL_OUT
	hookPostRouting = 4 // NF_INET_POST_ROUTING
)

// nftables looks for a chain at one of the hooks that packets of this host pass.
func (h *host) nftables() (found string, err error) {
	req := nl.NewNetlinkRequest(nftGetChain, syscall.NLM_F_DUMP)
	req.Sockets = h.requests
	req.AddData(&nl.Nfgenmsg{NfgenFamily: syscall.AF_UNSPEC})
	messages, err := req.Execute(syscall.NETLINK_NETFILTER, nftNewChain)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		return "", nil // a kernel without nftables
	}
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	for _, m := range messages {
		family := nl.DeserializeNfgenmsg(m).NfgenFamily
		if family != syscall.AF_INET && family != nfprotoINet {
			continue
		}
		if hook := chainHook(m[nl.SizeofNfgenmsg:]); hook == hookLocalOut || hook == hookPostRouting {
			return "nftables or iptables has a chain for packets of this host", nil
		}
	}
	return "", nil
}

// nfprotoINet is NFPROTO_INET, for both IP versions.
const nfprotoINet = 1

// chainHook returns the hook of a chain, and -1 for a chain that others jump to.
func chainHook(attrs []byte) int {
	for _, outer := range attributes(attrs) {
		if outer.Attr.Type&^nlaFlags != nftChainHook {
			continue
		}
		for _, inner := range attributes(outer.Value) {
			if inner.Attr.Type&^nlaFlags == nftHookNumber && len(inner.Value) == 4 {
				return int(inner.Value[3]) // the last byte of a number in network order
			}
		}
	}
	return -1
}

func attributes(b []byte) []syscall.NetlinkRouteAttr {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	return list
}

// iptables looks for tables of the older iptables, which are there from the first
// rule on.
func (h *host) iptables() (found string, err error) {
	f, err := h.proc.Open("ip_tables_names")
	if err != nil {
		return "", nil // the module is not there
	}
	defer f.Close()
	names, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	if tables := strings.Fields(string(names)); len(tables) > 0 {
		return "iptables has tables here: " + strings.Join(tables, " "), nil
	}
	return "", nil
}

// ipsec looks for IPsec policies.
func (h *host) ipsec() (found string, err error) {
	if h.xfrm == nil {
		return "", nil // a kernel without IPsec
	}
	policies, err := h.xfrm.XfrmPolicyList(netlink.FAMILY_V4)
	if err != nil {
		return "", fmt.Errorf("list IPsec policies: %w", err)
	}
	if len(policies) > 0 {
		return "there are IPsec policies", nil
	}
	return "", nil
}
