package tunnel

import (
	"cmp"
	"net/netip"
	"runtime"
	"time"

	"goipip/internal/packet"
	"goipip/tun"
)

// Limits of a tunnel's MTU, in bytes: what every IPv4 link must carry (RFC 791),
// and what still fits an IPv4 packet with the outer header (O2).
const (
	MinMTU = 68
	MaxMTU = 65535 - packet.IPv4HdrLen
)

// Limits of the time between two lookups of a name, and between two echo requests.
const (
	MinResolveInterval = Duration(time.Second)
	MaxResolveInterval = Duration(24 * time.Hour)
	MinKeepalive       = Duration(100 * time.Millisecond)
	MaxKeepalive       = Duration(time.Hour)
)

// How many echo requests may be lost.
const (
	DefaultKeepaliveRetries = 3
	MaxKeepaliveRetries     = 100
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

	// LocalDevice is the device whose first address Local is, and RemoteName the host name
	// whose address Remote is. Whoever opens the tunnel looks them up, again from time to time,
	// and changes the tunnel; to the tunnel itself they are names beside its addresses.
	LocalDevice     string   `json:"local-dev,omitempty"`
	RemoteName      string   `json:"remote-name,omitempty"`
	ResolveInterval Duration `json:"resolve-interval,omitempty"` // MinResolveInterval to MaxResolveInterval; 0 goes by the answers

	Address netip.Prefix `json:"address,omitzero"` // inner address of this end
	Peer    netip.Addr   `json:"peer,omitzero"`    // inner address of the other end

	Addresses []netip.Prefix `json:"addresses,omitempty"` // more inner addresses of this end
	Routes    []Route        `json:"routes,omitempty"`    // by the link

	MTU        int    `json:"mtu,omitempty"` // MinMTU to MaxMTU; 0 derives it from the route to Remote (O2)
	TTL        uint8  `json:"ttl,omitempty"` // 0 inherits (O3)
	TOS        uint8  `json:"tos,omitempty"` // (O4)
	InheritTOS bool   `json:"inherit-tos,omitempty"`
	NoPMTUDisc bool   `json:"nopmtudisc,omitempty"` // (O5)
	Device     string `json:"dev,omitempty"`        // that outer packets leave by (O6)
	Mark       uint32 `json:"fwmark,omitempty"`     // by which the route of outer packets is chosen, and that they bear (O10)
	RelayICMP  bool   `json:"relay-icmp,omitempty"` // tell the inner sender at once of an ICMP error, as RFC 2003 §4 has it; Linux waits (T8)

	Keepalive        Duration `json:"keepalive,omitempty"`         // MinKeepalive to MaxKeepalive between echo requests to a silent peer; 0 sends none
	KeepaliveRetries int      `json:"keepalive-retries,omitempty"` // how many of them are lost before the link's carrier goes off, 1 to MaxKeepaliveRetries; 0 for DefaultKeepaliveRetries

	Transmit  TransmitPath `json:"tx,omitempty"`
	Fast      FastPath     `json:"fast-path,omitempty"`  // whether the kernel carries packets by itself
	ClampMSS  ClampMSS     `json:"clamp-mss,omitempty"`  // the largest MSS that TCP may agree on
	Queues    int          `json:"queues,omitempty"`     // 1 to tun.MaxQueues
	NoOffload bool         `json:"no-offload,omitempty"` // leave nothing to the kernel on the other side of the TUN

	// Down leaves a new link down, as ip tunnel add does.
	Down bool `json:"down,omitempty"`
	// AnyProtocol is the mode any of ip-link(8), for show: IPv4 is all that a tunnel carries.
	AnyProtocol bool `json:"any,omitempty"`
}

// Route is a route by a tunnel's link.
type Route = tun.Route

// NeedsNewLink reports whether a tunnel cannot become one with the settings next unless its
// link is made anew.
func (c Config) NeedsNewLink(next Config) bool {
	return c.Name != next.Name || c.Queues != next.Queues || c.NoOffload != next.NoOffload
}

// AnyLocal reports whether packets leave from the address that their route has, and are
// received at any address of this host (O11).
func (c Config) AnyLocal() bool { return !c.Local.IsValid() }

// Named reports whether an end of the tunnel is a name.
func (c Config) Named() bool { return c.LocalDevice != "" || c.RemoteName != "" }

// LocalText is Local in the words of ip-tunnel(8): an address, or any. While LocalDevice has no
// address it is that.
func (c Config) LocalText() string {
	if c.AnyLocal() {
		return cmp.Or(c.LocalDevice, "any")
	}
	return c.Local.String()
}

// RemoteText is Remote, and while RemoteName has no address that.
func (c Config) RemoteText() string {
	if !c.Remote.IsValid() {
		return c.RemoteName
	}
	return c.Remote.String()
}

// DefaultQueues is a queue for every two cores, because each has two loops. Four are
// the most: the kernel copies each packet to the receiver of every queue.
func DefaultQueues() int { return max(1, min(runtime.GOMAXPROCS(0)/2, 4)) }

// RouteTOS is the TOS, without ECN bits, by which routes are chosen (ip rule add tos): the configured
// one. Linux takes each packet's where that is inherited.
func (c Config) RouteTOS() uint8 {
	const ecn = 0x03 // INET_DSCP_MASK has the others
	if c.InheritTOS {
		return 0
	}
	return c.TOS &^ ecn
}
