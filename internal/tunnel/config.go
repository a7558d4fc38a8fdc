package tunnel

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"goipip/internal/packet"
	"goipip/tun"
)

// Limits of a tunnel's MTU, in bytes: what every IPv4 link must carry (RFC 791),
// and what still fits an IPv4 packet with the outer header (O2).
const (
	MinMTU = 68
	MaxMTU = 65535 - packet.IPv4HdrLen
)

// MaxQueues is the most queues that a link can have.
const MaxQueues = tun.MaxQueues

// Config is all that there is to say about a tunnel. The zero value of a field
// is its default, but for Remote and Queues. As JSON it is the tunnel of the control
// protocol (docs/control.md), under the names of the keys of a configuration file.
type Config struct {
	Name   string     `json:"name,omitempty"` // of the link; empty for the first free of goipip0, goipip1, …
	Local  netip.Addr `json:"local,omitzero"` // the zero Addr for any: packets leave from the address that the route picks (O11)
	Remote netip.Addr `json:"remote,omitzero"`

	Address netip.Prefix `json:"address,omitzero"` // inner address of this end
	Peer    netip.Addr   `json:"peer,omitzero"`    // inner address of the other end

	Addresses []netip.Prefix `json:"addresses,omitempty"` // more inner addresses of this end
	Routes    []tun.Route    `json:"routes,omitempty"`    // by the link

	MTU        int    `json:"mtu,omitempty"` // MinMTU to MaxMTU; 0 derives it from the route to Remote (O2)
	TTL        uint8  `json:"ttl,omitempty"` // 0 inherits (O3)
	TOS        uint8  `json:"tos,omitempty"` // (O4)
	InheritTOS bool   `json:"inherit-tos,omitempty"`
	NoPMTUDisc bool   `json:"nopmtudisc,omitempty"` // (O5)
	Device     string `json:"dev,omitempty"`        // that outer packets leave by (O6)
	Mark       uint32 `json:"fwmark,omitempty"`     // by which the route of outer packets is chosen, and that they bear (O10)
	RelayICMP  bool   `json:"relay-icmp,omitempty"` // tell the inner sender at once of an ICMP error, as RFC 2003 §4 has it; Linux waits (T8)

	Transmit  TransmitPath `json:"tx,omitempty"`
	Queues    int          `json:"queues,omitempty"`     // 1 to tun.MaxQueues
	NoOffload bool         `json:"no-offload,omitempty"` // leave nothing to the kernel on the other side of the TUN

	// Down leaves a new link down, as ip tunnel add does.
	Down bool `json:"down,omitempty"`
	// AnyProtocol is the mode any of ip-link(8), for show: IPv4 is all that a tunnel carries.
	AnyProtocol bool `json:"any,omitempty"`
}

// NeedsNewLink reports whether a tunnel cannot become one with the settings next unless its
// link is made anew.
func (c Config) NeedsNewLink(next Config) bool {
	return c.Name != next.Name || c.Queues != next.Queues || c.NoOffload != next.NoOffload
}

// DefaultQueues is a queue for every two cores, because each has two loops. Four are
// the most: the kernel copies each packet to the receiver of every queue.
func DefaultQueues() int { return max(1, min(runtime.GOMAXPROCS(0)/2, 4)) }

// Validate checks what can be checked without asking the kernel. The error joins
// those of FieldErrors, with the names of fields as they are.
func (c Config) Validate() error {
	var errs []error
	for _, e := range c.FieldErrors() {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// FieldErrors returns what Validate finds, one error for each setting that is wrong.
func (c Config) FieldErrors() []*FieldError {
	all := []*FieldError{
		end(fieldLocal, c.Local),
		end(fieldRemote, c.Remote),
		c.validatePair(),
		validateName(fieldName, c.Name),
		validateName(fieldDev, c.Device),
		c.validateAddress(),
		c.validatePeer(),
		c.validateMTU(),
		c.validateTTL(),
		c.validateQueues(),
	}
	return slices.DeleteFunc(all, func(e *FieldError) bool { return e == nil })
}

// end checks one end of the tunnel.
func end(f field, a netip.Addr) *FieldError {
	switch {
	case !a.IsValid():
		return f.errorf("%v is missing: give the IPv4 address of this tunnel's %s end", f, string(f))
	case !a.Is4():
		return f.errorf("%v %v: ipip runs over IPv4 only, and this is an IPv6 address", f, a)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return f.errorf("%v %v: not the address of one host", f, a)
	}
	return nil
}

func (c Config) validatePair() *FieldError {
	if c.Local.IsValid() && c.Local == c.Remote {
		return fieldRemote.errorf("%v and %v are both %v: a tunnel needs two different ends", fieldLocal, fieldRemote, c.Local)
	}
	return nil
}

// validateName follows dev_valid_name in net/core/dev.c, and refuses % too, with
// which the kernel would number the name.
func validateName(f field, name string) *FieldError {
	switch {
	case len(name) > 15:
		return f.errorf("%v %q: %d bytes long, and a link's name has at most 15", f, name, len(name))
	case name == ".", name == "..", strings.ContainsAny(name, "/:% \t\n\v\f\r"):
		return f.errorf("%v %q: not a name that a link can have", f, name)
	}
	return nil
}

func (c Config) validateAddress() *FieldError {
	if c.Address.IsValid() && !c.Address.Addr().Is4() {
		return fieldAddress.errorf("%v %v: an ipip tunnel carries IPv4 only", fieldAddress, c.Address)
	}
	return nil
}

func (c Config) validatePeer() *FieldError {
	switch {
	case !c.Peer.IsValid():
		return nil
	case !c.Peer.Is4():
		return fieldPeer.errorf("%v %v: an ipip tunnel carries IPv4 only", fieldPeer, c.Peer)
	case !c.Address.IsValid():
		return fieldPeer.errorf("%v %v needs %v, the inner address of this end", fieldPeer, c.Peer, fieldAddress)
	case c.Address.Addr().Is4() && c.Address.Bits() != 32:
		return fieldAddress.errorf("%v %v with %v: give the address without a prefix length", fieldAddress, c.Address, fieldPeer)
	}
	return nil
}

func (c Config) validateMTU() *FieldError {
	if c.MTU != 0 && (c.MTU < MinMTU || c.MTU > MaxMTU) {
		return fieldMTU.errorf("%v %d: must be %d to %d", fieldMTU, c.MTU, MinMTU, MaxMTU)
	}
	return nil
}

func (c Config) validateTTL() *FieldError {
	if c.TTL != 0 && c.NoPMTUDisc { // O3, as ip(8) says it
		return fieldNoPMTUDisc.errorf("ttl != 0 and nopmtudisc are incompatible: leave out %v or %v", fieldTTL, fieldNoPMTUDisc)
	}
	return nil
}

func (c Config) validateQueues() *FieldError {
	if c.Queues < 1 || c.Queues > tun.MaxQueues {
		return fieldQueues.errorf("%v %d: must be 1 to %d", fieldQueues, c.Queues, tun.MaxQueues)
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
