package underlay

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
)

// Filters, as Path.Filtered names them.
const (
	nftablesFound = "nftables or iptables has a chain for IPv4 packets"
	ipsecFound    = "there are IPsec policies"
)

// netdevFound is what Path.Observed names.
const netdevFound = "nftables has a chain at a device"

// filters returns what sees the packets of a raw socket, but not those of a packet socket;
// empty for nothing. It does not find a cgroup's programs for egress (such as those of
// systemd's IPAddressDeny=), nor BPF links at netfilter's hooks. And it returns whether
// nftables sees packets at devices, as Path.Observed. What cannot be read counts as a filter.
func (k *kernel) filters() (found, netdev string) {
	chains, err := k.chains()
	switch {
	case slices.ContainsFunc(chains, atDevice):
		netdev = netdevFound
	case err != nil:
		netdev = fmt.Sprintf("cannot tell whether nftables has chains at devices: %v", err)
	}
	return k.filters4(chains, err), netdev
}

// filters4 is filters for IPv4, of which the chains of nftables are listed already.
func (k *kernel) filters4(chains [][]byte, err error) string {
	if slices.ContainsFunc(chains, seesIPv4) {
		return nftablesFound
	}
	nftables := func() (string, error) { return "", err }
	for _, look := range []func() (string, error){nftables, k.iptables, k.ipsec4} {
		found, err := look()
		if err != nil {
			return fmt.Sprintf("cannot tell whether packets are filtered: %v", err)
		}
		if found != "" {
			return found
		}
	}
	return ""
}

// Numbers of linux/netfilter/nf_tables.h and linux/netfilter.h.
const (
	nfnlNFTables = 10 // NFNL_SUBSYS_NFTABLES
	nftDelTable  = nfnlNFTables<<8 | 2
	nftNewChain  = nfnlNFTables<<8 | 3
	nftGetChain  = nfnlNFTables<<8 | 4
	nftDelChain  = nfnlNFTables<<8 | 5
	nftChainHook = 4 // NFTA_CHAIN_HOOK
	nfprotoINet  = 1 // NFPROTO_INET, for both IP versions

	nfprotoNetdev = 5 // NFPROTO_NETDEV
)

// chains lists the chains of nftables. With an error it may have some.
func (k *kernel) chains() ([][]byte, error) {
	if k.noNFTables.Load() {
		// A request would make the kernel try to load the module.
		if _, loaded, err := moduleUsers("nf_tables"); err != nil || !loaded {
			return nil, err
		}
	}
	messages, err := k.request(syscall.NETLINK_NETFILTER, nftGetChain, syscall.NLM_F_DUMP, nftNewChain,
		&nl.Nfgenmsg{NfgenFamily: syscall.AF_UNSPEC})
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		k.noNFTables.Store(true)
		return nil, nil
	}
	if err != nil {
		return messages, fmt.Errorf("list nftables chains: %w", err)
	}
	return messages, nil
}

// seesIPv4 reports whether a chain is at a hook that IPv4 packets pass: at any, not only at
// those of outgoing packets. A rule about connections at the input hook, for example, enables
// connection tracking at all of them (nf_ct_netns_get in
// net/netfilter/nf_conntrack_proto.c), which must see both directions.
func seesIPv4(chain []byte) bool { return hooked(chain, syscall.AF_INET, nfprotoINet) }

// atDevice reports whether a chain is at a hook of a device.
func atDevice(chain []byte) bool { return hooked(chain, nfprotoNetdev) }

// hooked reports whether a chain is of one of families, and at a hook rather than the target
// of jumps only.
func hooked(chain []byte, families ...uint8) bool {
	return len(chain) >= nl.SizeofNfgenmsg &&
		slices.Contains(families, nl.DeserializeNfgenmsg(chain).NfgenFamily) &&
		slices.ContainsFunc(attributes(chain[nl.SizeofNfgenmsg:]), func(a syscall.NetlinkRouteAttr) bool {
			return a.Attr.Type&^nlaFlags == nftChainHook
		})
}

// iptables looks for tables of legacy iptables, which exist from the first rule on.
func (k *kernel) iptables() (found string, err error) {
	// /proc/thread-self/net is that of the thread's namespace, and goes with the thread.
	err = k.namespace.do(func() error {
		proc, err := os.OpenRoot("/proc/thread-self/net")
		if err != nil {
			return err // also ErrNotExist: there may be tables all the same
		}
		defer proc.Close()
		names, err := proc.ReadFile("ip_tables_names")
		if errors.Is(err, os.ErrNotExist) {
			return nil // the module is not loaded
		}
		if tables := strings.Fields(string(names)); len(tables) > 0 {
			found = "iptables has tables here: " + strings.Join(tables, " ")
		}
		return err
	})
	return found, err
}

// Numbers of linux/xfrm.h.
const (
	xfrmNewPolicy  = 0x13 // XFRM_MSG_NEWPOLICY
	xfrmGetPolicy  = 0x15
	xfrmUpdPolicy  = 0x19
	xfrmGetDefault = 0x28 // XFRM_MSG_GETDEFAULT, Linux 5.15
	xfrmBlock      = 1    // XFRM_USERPOLICY_BLOCK
	xfrmDefaults   = 3    // bytes of struct xfrm_userpolicy_default: in, fwd, out
)

// body is the body of a netlink message.
type body []byte

func (b body) Len() int          { return len(b) }
func (b body) Serialize() []byte { return b }

// ipsec4 looks for IPsec policies, and for a default policy of any direction that blocks.
func (k *kernel) ipsec4() (found string, err error) {
	if k.requests[syscall.NETLINK_XFRM] == nil {
		return "", nil // a kernel without IPsec
	}
	policies, err := k.request(syscall.NETLINK_XFRM, xfrmGetPolicy, syscall.NLM_F_DUMP, xfrmNewPolicy, nl.NewIfInfomsg(syscall.AF_UNSPEC))
	if err != nil {
		return "", fmt.Errorf("list IPsec policies: %w", err)
	}
	if slices.ContainsFunc(policies, isIPv4Policy) {
		return ipsecFound, nil
	}
	answers, err := k.request(syscall.NETLINK_XFRM, xfrmGetDefault, 0, xfrmGetDefault, make(body, xfrmDefaults))
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		return "", nil // an older kernel
	}
	if err != nil {
		return "", fmt.Errorf("look up the default IPsec policy: %w", err)
	}
	if len(answers) > 0 && slices.Contains(answers[0][:min(xfrmDefaults, len(answers[0]))], xfrmBlock) {
		return "IPsec blocks packets without a policy", nil
	}
	return "", nil
}

// isIPv4Policy reports whether a policy applies to IPv4 packets.
func isIPv4Policy(policy []byte) bool {
	return len(policy) >= nl.SizeofXfrmUserpolicyInfo && nl.DeserializeXfrmUserpolicyInfo(policy).Sel.Family != syscall.AF_INET6
}
