package oracle_test

import (
	"fmt"
	"net/netip"
	"strings"
)

// Both routers stand in the same place. The driver is all of their neighbours:
//
//	senders 10.1/16 ── 10.1.0.2 ── 10.1.0.1 inner ROUTER under 192.168.6.1 ── 192.168.6.2 ── 192.168.8.2, the far end
//	                                          │                            └─ 192.168.6.3, another gateway
//	                                        tun01 ── 10.2/16, and all that has no other way
var (
	innerAddr   = netip.MustParseAddr("10.1.0.1")
	localAddr   = netip.MustParseAddr("192.168.6.1")
	gatewayAddr = netip.MustParseAddr("192.168.6.2")
	detourAddr  = netip.MustParseAddr("192.168.6.3")
	remoteAddr  = netip.MustParseAddr("192.168.8.2")
	tunnelAddr  = netip.MustParseAddr("172.56.1.101")
)

// own are the addresses of a router.
var own = []netip.Addr{innerAddr, localAddr, tunnelAddr}

// The driver's hardware addresses.
const (
	senderMAC  = "02:00:00:00:01:02"
	gatewayMAC = "02:00:00:00:06:02"
	detourMAC  = "02:00:00:00:06:03"
)

// setUpScript makes a router of a host whose devices are $inner and $under. It
// answers every packet that deserves it, as often as it comes. Without ARP it
// sends at once to those whom it does not know, with its own hardware address
// (arp_constructor in net/ipv4/arp.c).
var setUpScript = `set -e
set_all() { for conf in all default $inner $under; do echo $2 >/proc/sys/net/ipv4/conf/$conf/$1; done; }
ip link set $inner arp off
ip link set $under arp off
cd /proc/sys/net/ipv4
echo 1 >ip_forward
echo 0 >icmp_ratelimit
echo 0 >icmp_ratemask
echo 2 >ipfrag_time
set_all rp_filter 0
set_all send_redirects 0
set_all accept_redirects 1
set_all secure_redirects 0
set_all accept_source_route 1
ip addr add ` + innerAddr.String() + `/24 dev $inner
ip addr add ` + localAddr.String() + `/24 dev $under
ip neigh replace 10.1.0.2 lladdr ` + senderMAC + ` dev $inner nud permanent
ip neigh replace ` + gatewayAddr.String() + ` lladdr ` + gatewayMAC + ` dev $under nud permanent
ip neigh replace ` + detourAddr.String() + ` lladdr ` + detourMAC + ` dev $under nud permanent
ip route add 10.1.0.0/16 via 10.1.0.2
` + routeScript

// routeScript makes the route to the far end anew, which forgets what was learned
// about it: path MTU and redirects.
var routeScript = `
ip route del 192.168.8.0/24 2>/dev/null || true
ip route add 192.168.8.0/24 via ` + gatewayAddr.String() + `
`

// inTunnelScript is for a router with a new tunnel.
var inTunnelScript = routeScript + `set -e
ip addr add ` + tunnelAddr.String() + ` peer 172.56.2.101 dev tun01
ip route add 10.2.0.0/16 dev tun01
ip route add default dev tun01
`

// tunnel is a configuration of tun01, in the words of ip-tunnel(8).
type tunnel struct {
	name       string
	ttl        uint8 // 0 inherits
	tos        uint8
	inheritTOS bool
	nopmtudisc bool
	dev        bool // bound to the underlay device
	mtu        int  // 0 leaves it as it is made
	underMTU   int  // of the underlay device; 0 is that of all cables
	strict     bool // with rp_filter on the tunnel (R7)

	anyLocal bool       // no local address (O11)
	source   netip.Addr // preferred source of the route to the far end; the zero Addr for none
}

var configurations = []tunnel{
	{name: "default"},
	{name: "ttl 64", ttl: 64},
	{name: "tos 0x10", tos: 0x10},
	{name: "tos inherit", inheritTOS: true},
	{name: "nopmtudisc", nopmtudisc: true},
	{name: "dev", dev: true},
	{name: "rp_filter", strict: true},
}

// anyConfigurations have tunnels without a local address.
var anyConfigurations = []tunnel{
	{name: "O11", anyLocal: true},
	{name: "O11_src", anyLocal: true, source: innerAddr, ttl: 64},
}

// pathConfigurations have tunnels that take longer packets than their path.
var pathConfigurations = []tunnel{
	{name: "narrow path", mtu: 1480, underMTU: 1400},
	{name: "narrow path, nopmtudisc", mtu: 1480, underMTU: 1400, nopmtudisc: true},
	{name: "narrow path, ttl 64", mtu: 1480, underMTU: 1400, ttl: 64},
	{name: "narrow path, local any", mtu: 1480, underMTU: 1400, anyLocal: true, source: innerAddr},
}

// script makes the tunnel on the reference.
func (c tunnel) script() string {
	var b strings.Builder
	fmt.Fprintf(&b, "set -e\nip tunnel del tun01 2>/dev/null || true\n")
	fmt.Fprintf(&b, "ip link set $under mtu %d\n", c.underlay())
	fmt.Fprintf(&b, "ip tunnel add tun01 mode ipip remote %v", remoteAddr)
	if !c.anyLocal {
		fmt.Fprintf(&b, " local %v", localAddr)
	}
	if c.ttl != 0 {
		fmt.Fprintf(&b, " ttl %d", c.ttl)
	}
	if c.tos != 0 {
		fmt.Fprintf(&b, " tos %#x", c.tos)
	}
	if c.inheritTOS {
		b.WriteString(" tos inherit")
	}
	if c.nopmtudisc {
		b.WriteString(" nopmtudisc")
	}
	if c.dev {
		b.WriteString(" dev $under")
	}
	b.WriteString("\nip link set tun01 up")
	if c.mtu != 0 {
		fmt.Fprintf(&b, " mtu %d", c.mtu)
	}
	b.WriteString("\n")
	return b.String()
}

// inTunnel is what either router needs in its new tunnel.
func (c tunnel) inTunnel() string {
	script := inTunnelScript
	if c.strict {
		script += "echo 1 >/proc/sys/net/ipv4/conf/tun01/rp_filter\n"
	}
	if c.source.IsValid() {
		script += fmt.Sprintf("ip route change 192.168.8.0/24 via %v src %v\n", gatewayAddr, c.source)
	}
	return script
}

func (c tunnel) underlay() int {
	if c.underMTU != 0 {
		return c.underMTU
	}
	return cableMTU
}
