package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"

	"goipip/encap"
	"goipip/tun"
)

// Limits of a tunnel's MTU, in bytes: what every IPv4 link must carry (RFC 791),
// and what still fits an IPv4 packet with the outer header (O2).
const (
	MinMTU = 68
	MaxMTU = 65535 - encap.HdrLen
)

// Config is all that there is to say about a tunnel. The zero value of a field
// is its default, but for Local, Remote and Queues.
type Config struct {
	Name   string // of the link; empty for the first free of goipip0, goipip1, …
	Local  netip.Addr
	Remote netip.Addr

	Address netip.Prefix // inner address of this end
	Peer    netip.Addr   // inner address of the other end

	MTU        int   // MinMTU to MaxMTU; 0 derives it from the route to Remote (O2)
	TTL        uint8 // 0 inherits (O3)
	TOS        uint8 // (O4)
	InheritTOS bool
	NoPMTUDisc bool   // (O5)
	Device     string // that outer packets leave by (O6)
	Mark       uint32 // by which the route of outer packets is chosen, and that they bear (O10)
	RelayICMP  bool   // tell the inner sender at once of an ICMP error, as RFC 2003 §4 has it; Linux waits (T8)

	Road      Road
	Queues    int  // 1 to tun.MaxQueues
	NoOffload bool // leave nothing to the kernel on the other side of the TUN
}

// DefaultQueues is a queue for every two cores, because each has two loops. Four are
// the most: the kernel copies each packet to the receiver of every queue.
func DefaultQueues() int { return max(1, min(runtime.GOMAXPROCS(0)/2, 4)) }

// Validate checks what can be checked without asking the kernel. The error says
// which setting is wrong, in the words of the command line, and how to mend it.
func (c Config) Validate() error {
	return errors.Join(
		end("local", c.Local),
		end("remote", c.Remote),
		c.validatePair(),
		validateName("name", c.Name),
		validateName("dev", c.Device),
		c.validateInner(),
		c.validateOptions(),
	)
}

// end checks one end of the tunnel.
func end(flag string, a netip.Addr) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("--%s is missing: give the IPv4 address of this tunnel's %s end", flag, flag)
	case !a.Is4():
		return fmt.Errorf("--%s %v: ipip runs over IPv4 only, and this is an IPv6 address", flag, a)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("--%s %v: not the address of one host", flag, a)
	}
	return nil
}

func (c Config) validatePair() error {
	if c.Local.IsValid() && c.Local == c.Remote {
		return fmt.Errorf("--local and --remote are both %v: a tunnel needs two different ends", c.Local)
	}
	return nil
}

// validateName follows dev_valid_name in net/core/dev.c, and refuses % too, with
// which the kernel would number the name.
func validateName(flag, name string) error {
	switch {
	case len(name) > 15:
		return fmt.Errorf("--%s %q: %d bytes long, and a link's name has at most 15", flag, name, len(name))
	case name == ".", name == "..", strings.ContainsAny(name, "/:% \t\n\v\f\r"):
		return fmt.Errorf("--%s %q: not a name that a link can have", flag, name)
	}
	return nil
}

func (c Config) validateInner() error {
	switch {
	case c.Address.IsValid() && !c.Address.Addr().Is4():
		return fmt.Errorf("--address %v: an ipip tunnel carries IPv4 only", c.Address)
	case c.Peer.IsValid() && !c.Peer.Is4():
		return fmt.Errorf("--peer %v: an ipip tunnel carries IPv4 only", c.Peer)
	case c.Peer.IsValid() && !c.Address.IsValid():
		return fmt.Errorf("--peer %v needs --address, the inner address of this end", c.Peer)
	case c.Peer.IsValid() && c.Address.Bits() != 32:
		return fmt.Errorf("--address %v with --peer: give the address without a prefix length", c.Address)
	}
	return nil
}

func (c Config) validateOptions() error {
	switch {
	case c.MTU != 0 && (c.MTU < MinMTU || c.MTU > MaxMTU):
		return fmt.Errorf("--mtu %d: must be %d to %d", c.MTU, MinMTU, MaxMTU)
	case c.TTL != 0 && c.NoPMTUDisc: // O3, as ip(8) says it
		return errors.New("ttl != 0 and nopmtudisc are incompatible: leave out --ttl or --nopmtudisc")
	case c.Queues < 1 || c.Queues > tun.MaxQueues:
		return fmt.Errorf("--queues %d: must be 1 to %d", c.Queues, tun.MaxQueues)
	}
	return nil
}

// routeTOS is the TOS by which routes are chosen (ip rule add tos): the configured
// one. Linux takes each packet's where that is inherited.
func (c Config) routeTOS() uint8 {
	const ecn = 0x03 // INET_DSCP_MASK has the others
	if c.InheritTOS {
		return 0
	}
	return c.TOS &^ ecn
}
