package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// filters tells of what would see the packets of a raw socket, and not those of a
// packet socket: nil for nothing. It does not know of programs that a cgroup has for
// packets that leave (systemd's IPAddressDeny=, say), nor of those that BPF links
// put at netfilter's hooks.
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
	nlaFlags     = 0xc000              // NLA_F_NESTED, NLA_F_NET_BYTEORDER
	nfnlNFTables = 10                  // NFNL_SUBSYS_NFTABLES
	nftGetChain  = nfnlNFTables<<8 | 4 // NFT_MSG_GETCHAIN
	nftNewChain  = nfnlNFTables<<8 | 3
	nftChainHook = 4 // NFTA_CHAIN_HOOK
	nfprotoINet  = 1 // NFPROTO_INET, for both IP versions
)

// nftables looks for a chain at one of the hooks that IPv4 packets pass. Those of
// this host's packets are not the only ones: a rule about connections at another,
// say for input, has the kernel follow those at all (nf_ct_netns_get in
// net/netfilter/nf_conntrack_proto.c), and it must see both directions.
func (h *host) nftables() (found string, err error) {
	if h.noNFTables {
		if _, loaded := moduleUsers("nf_tables"); !loaded {
			return "", nil // asking again would have the kernel look for the module
		}
	}
	req := nl.NewNetlinkRequest(nftGetChain, syscall.NLM_F_DUMP)
	req.Sockets = h.requests
	req.AddData(&nl.Nfgenmsg{NfgenFamily: syscall.AF_UNSPEC})
	messages, err := req.Execute(syscall.NETLINK_NETFILTER, nftNewChain)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		h.noNFTables = true
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	for _, m := range messages {
		family := nl.DeserializeNfgenmsg(m).NfgenFamily
		if (family == syscall.AF_INET || family == nfprotoINet) && isBase(m[nl.SizeofNfgenmsg:]) {
			return "nftables or iptables has a chain for IPv4 packets", nil
		}
	}
	return "", nil
}

// isBase reports whether a chain is at a hook, and not one that others jump to.
func isBase(chain []byte) bool {
	return slices.ContainsFunc(attributes(chain), func(a syscall.NetlinkRouteAttr) bool {
		return a.Attr.Type&^nlaFlags == nftChainHook
	})
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
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // the module is not there
	}
	if err != nil {
		return "", err
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

// Numbers of linux/xfrm.h.
const (
	xfrmGetDefault = 0x28 // XFRM_MSG_GETDEFAULT, Linux 5.15
	xfrmOut        = 2    // the place of out in struct xfrm_userpolicy_default
	xfrmBlock      = 1    // XFRM_USERPOLICY_BLOCK
)

// body is that of a netlink message.
type body []byte

func (b body) Len() int          { return len(b) }
func (b body) Serialize() []byte { return b }

// ipsec looks for IPsec policies, and for what holds without one.
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
	req := nl.NewNetlinkRequest(xfrmGetDefault, 0)
	req.Sockets = h.requests
	req.AddData(body{xfrmOut: 0})
	answers, err := req.Execute(syscall.NETLINK_XFRM, xfrmGetDefault)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		return "", nil // an older kernel
	}
	if err != nil {
		return "", fmt.Errorf("look up the default IPsec policy: %w", err)
	}
	if len(answers) > 0 && len(answers[0]) > xfrmOut && answers[0][xfrmOut] == xfrmBlock {
		return "IPsec blocks what has no policy", nil
	}
	return "", nil
}
