package tunnel

import (
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
)

// mode begins what a tunnel says of itself, in the words of ip-tunnel(8).
const mode = "ip/ip"

// describe returns the line of ip tunnel show about this tunnel, without the name
// (O8; do_tunnels_list in iproute2). The link carries it as its alias, for any
// process to see.
func (c Config) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s remote %v local %s", mode, c.Remote, c.LocalText())
	if c.Device != "" {
		fmt.Fprintf(&b, " dev %s", c.Device)
	}
	if c.TTL == 0 {
		b.WriteString(" ttl inherit")
	} else {
		fmt.Fprintf(&b, " ttl %d", c.TTL)
	}
	if c.InheritTOS {
		b.WriteString(" tos inherit")
	} else if c.TOS != 0 {
		fmt.Fprintf(&b, " tos %#x", c.TOS)
	}
	if c.NoPMTUDisc {
		b.WriteString(" nopmtudisc")
	}
	return b.String()
}

// List returns a line for each tunnel of this network namespace, as ip tunnel show
// prints them.
func List() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var lines []string
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "tuntap" && strings.HasPrefix(a.Alias, mode+" ") {
			lines = append(lines, a.Name+": "+a.Alias)
		}
	}
	return lines, nil
}
