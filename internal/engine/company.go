package engine

import (
	"bufio"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// companyCure is what a person can do about company.
const companyCure = "remove the module (rmmod ipip sit tunnel4), or keep its answers here " +
	"(iptables -I OUTPUT -p icmp --icmp-type port-unreachable -d REMOTE -j DROP)"

// company returns what in this kernel also takes ipip packets to this host, empty
// for nothing: the module tunnel4 with those that use it, or the links of such a
// module where it is built in.
//
// A raw socket does not keep packets from a protocol handler. tunnel4 answers each
// packet for which it has no tunnel with ICMP 3/3 (tunnel4_rcv in
// net/ipv4/tunnel4.c), which a kernel at the other end reports to its own senders
// as "host unreachable" (T8).
func (h *host) company() string {
	if users, loaded := moduleUsers("tunnel4"); loaded && users != "" {
		return "tunnel4, for " + users
	} else if loaded {
		return "tunnel4"
	}
	links, err := h.handle.LinkList()
	if err != nil {
		return ""
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Type() == "ipip" || l.Type() == "sit" })
	if i < 0 {
		return ""
	}
	return links[i].Type() + ", of link " + links[i].Attrs().Name
}

// moduleUsers returns the modules that use one, separated by commas, and whether
// that is loaded (/proc/modules, in proc(5)).
func moduleUsers(module string) (users string, loaded bool) {
	f, err := os.Open("/proc/modules")
	if err != nil {
		return "", false // a kernel without modules
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// name size references users, state address
		if fields := strings.Fields(lines.Text()); len(fields) > 3 && fields[0] == module {
			return strings.Trim(fields[3], ",-"), true
		}
	}
	return "", false
}
