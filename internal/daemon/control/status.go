package control

import (
	"net/netip"
	"time"

	"goipip/internal/tunnel"
)

// Status is what a goipip process says of itself and of its tunnels.
type Status struct {
	Process Process        `json:"process"`
	Tunnels []TunnelStatus `json:"tunnels"` // by index
	// Missing are the tunnels of the configuration that do not run, by name.
	Missing []string `json:"missing,omitempty"`
	Reloads *Reloads `json:"reloads,omitempty"` // nil without a configuration
	// Conflict is what else in this kernel answers ipip packets, and the remedy; empty if
	// nothing does.
	Conflict string `json:"conflict,omitempty"`
	// Unattributed is how many packets found no room on a receiving socket of which the
	// kernel does not tell which tunnel they were for. While there is one tunnel, its drops
	// have them too.
	Unattributed uint64 `json:"unattributed,omitempty"`
}

// Reloads is how the configuration was read. A success is one after which each tunnel is as
// the configuration says.
type Reloads struct {
	Succeeded  uint64    `json:"succeeded"` // after the start
	Failed     uint64    `json:"failed"`
	LastFailed bool      `json:"last_failed"` // the last one, or if there was none, the start
	LastGood   time.Time `json:"last_good,omitzero"`
}

// Process describes a goipip process.
type Process struct {
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Role    Role      `json:"role"`
	Config  string    `json:"config,omitempty"` // path of the configuration that it runs
	Started time.Time `json:"started"`
	Workers int       `json:"workers"`
}

// Role is what a process was started as.
type Role string

// The roles.
const (
	RoleBackground Role = "background" // by goipip tunnel add; it ends with its last tunnel
	RoleRun        Role = "run"        // by goipip run, with a configuration
	RoleBeside     Role = "beside"     // by goipip run --beside, with a configuration
	RoleForeground Role = "foreground" // by goipip -local … -remote …, for one tunnel
)

// TunnelStatus describes a tunnel.
type TunnelStatus struct {
	Name   string        `json:"name"`   // that the link was created with, which log lines have
	Config tunnel.Config `json:"config"` // in force; Config.Name is the link's present name
	Since  time.Time     `json:"since"`  // when the tunnel was made, or began to wait

	Index int  `json:"index"` // of the link; 0 while the tunnel waits for the address of a name, as Trouble says
	Up    bool `json:"up"`    // the link is
	Away  bool `json:"away"`  // the link is in another network namespace; Up and MTU are as last seen
	MTU   int  `json:"mtu"`   // of the link, in bytes

	// MaxMSS is the largest MSS that TCP SYNs through the tunnel may offer, in bytes; 0 for any.
	MaxMSS int `json:"max_mss,omitempty"`

	// Trouble is why no packet leaves; empty if packets do.
	Trouble  string   `json:"trouble,omitempty"`
	Underlay Underlay `json:"underlay"`

	// FastPath is how the tunnel stands to the kernel's fast path; nil if it is off.
	FastPath *FastPath `json:"fast_path,omitempty"`

	// Keepalive is what echo requests tell of the remote end; nil without a keepalive.
	Keepalive *Keepalive `json:"keepalive,omitempty"`

	// SoftErrors is how many of the next senders are notified of an ICMP error about the
	// tunnel (T8).
	SoftErrors int `json:"soft_errors"`
	// ICMPErrors is how many ICMP errors about the tunnel's packets came.
	ICMPErrors uint64 `json:"icmp_errors"`

	TX Traffic `json:"tx"` // from the link to the remote end
	RX Traffic `json:"rx"` // the way back
	// Link has the counters as the kernel's tunnel would have them, in the names of struct
	// rtnl_link_stats64.
	Link map[string]uint64 `json:"link"`
}

// Underlay is the path of a tunnel's outer packets.
type Underlay struct {
	Source     netip.Addr `json:"source,omitzero"`       // of outer packets
	Device     string     `json:"device,omitempty"`      // that they leave by; empty if not known
	NextHop    netip.Addr `json:"next_hop,omitzero"`     // on that device
	LinkAddr   string     `json:"link_addr,omitempty"`   // of the next hop, as 02:00:00:00:00:01; empty where the kernel finds it
	Transmit   string     `json:"transmit"`              // "packet" or "raw": the socket that sends
	WhyRaw     string     `json:"why_raw,omitempty"`     // why the raw socket does, although the packet socket would be faster
	PathMTU    int        `json:"path_mtu"`              // of outer packets, in bytes; 0 if not known
	DeviceMTU  int        `json:"device_mtu"`            // of Device, in bytes; 0 if not known
	ReportedBy string     `json:"reported_by,omitempty"` // "router" where PathMTU comes from an ICMP error
}

// FastPath is how a tunnel stands to the fast path.
type FastPath struct {
	Used     bool   `json:"used"`              // the kernel carries packets by itself now
	WhyNot   string `json:"why_not,omitempty"` // why it does not
	Sent     uint64 `json:"sent"`              // packets that it has carried so far; TX and RX have them too
	Received uint64 `json:"received"`
}

// Keepalive is whether the remote end answers.
type Keepalive struct {
	Carrier     bool      `json:"carrier"`               // of the link: off while the remote end does not answer
	SilentSince time.Time `json:"silent_since,omitzero"` // when the last packet came, to the precision of the setting; zero while Carrier
}

// Traffic is what passed in one direction.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // from the inner IP header on
	// Rates are over the last second.
	PacketRate uint64 `json:"packets_per_second"`
	ByteRate   uint64 `json:"bytes_per_second"`
	// Last is when the last packet passed, to the second; zero if none has.
	Last time.Time `json:"last,omitzero"`
	// Drops has how many packets were dropped for each reason of package stats, by its name;
	// those that never occurred are absent.
	Drops map[string]uint64 `json:"drops,omitempty"`
}
