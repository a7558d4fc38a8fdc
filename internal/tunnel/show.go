package tunnel

import (
	"fmt"
	"strings"
)

// describe returns what the link has as its alias, for people to see: much as ip tunnel show
// would say it (O8).
func (c Config) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ip/ip remote %v local %s", c.Remote, c.LocalText())
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
