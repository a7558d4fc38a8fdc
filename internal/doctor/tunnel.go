package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"goipip/encap"
	"goipip/internal/tunnel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// name looks at the names of the tunnel's ends.
func (e *exam) name(s *subject) []Result {
	switch {
	case !s.Config.Named() || e.watcher == nil:
		return nil
	case s.name != nil:
		return []Result{{
			Status: Failure, Saw: s.name.Error(), Why: "the tunnel waits until it has one",
			Cure: "correct the name, give the device an address, or see to the servers of /etc/resolv.conf",
		}}
	}
	return good("%s stands for %s to %v", s.Config.NamesText(), s.Config.LocalText(), s.Config.Remote)
}

// pair looks for another tunnel with the same two ends.
func (e *exam) pair(s *subject) []Result {
	if s.Running {
		return good("this tunnel has its two ends")
	}
	var held tunnel.HeldError
	switch err := tunnel.PairHeld(s.Config); {
	case err == nil:
		return good("no other tunnel has the same two ends")
	case errors.As(err, &held):
		r := Result{
			Status: Failure, Saw: held.Error(),
			Why:  "two tunnels between the same ends would each deliver every packet, so the second does not start",
			Cure: "end that tunnel, if it is not the one that is wanted",
		}
		if held.Link != "" {
			r.Commands = []string{command("ip", "link", "delete", held.Link)}
		}
		return []Result{r}
	default:
		return []Result{{Status: Warning, Saw: err.Error(), Why: "another tunnel may have the same two ends", Cure: "run goipip doctor as root"}}
	}
}

// link looks at the tunnel's link, or at what has its name.
func (e *exam) link(s *subject) []Result {
	name := s.Config.Name
	switch {
	case s.Away:
		return good("%s is in another network namespace", name)
	case s.Running && !s.Up:
		return []Result{{
			Status: Failure, Saw: name + " is down", Why: "no packet passes a link that is down",
			Commands: []string{command("ip", "link", "set", name, "up")},
		}}
	case s.Running:
		return good("%s is up", name)
	case name == "":
		return nil
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return good("no link has the name %s yet", name)
	}
	return []Result{{
		Status: Failure, Saw: fmt.Sprintf("there is a link %s already, of type %s", name, l.Type()), Why: "a tunnel makes its own link",
		Cure: "give another --name, or remove that link", Commands: []string{command("ip", "link", "delete", name)},
	}}
}

// address looks for an inner address.
func (e *exam) address(s *subject) []Result {
	if !s.here() {
		return nil
	}
	if len(e.addresses()[s.Index]) == 0 && len(e.routes()[s.Index]) == 0 {
		return []Result{{
			Status: Warning, Saw: s.Config.Name + " has neither an address nor a route", Why: "no packet of this host goes into the tunnel",
			Cure: fmt.Sprintf("give it an address: ip addr add ADDRESS peer PEER dev %s", s.Config.Name),
		}}
	}
	return good("packets find their way into %s", s.Config.Name)
}

// here reports whether the tunnel runs and its link is in this network namespace.
func (s *subject) here() bool { return s.Running && !s.Away }

// local looks for the local address.
func (e *exam) local(s *subject) []Result {
	local := s.Config.Local
	switch {
	case e.watcher == nil:
		return nil
	case !local.IsValid() && !s.path.Source.IsValid():
		return nil // route says so
	case !local.IsValid():
		return good("packets leave from %v", s.path.Source)
	case !s.path.LocalMissing:
		return good("%v is on this host", local)
	}
	r := Result{
		Status: Failure, Saw: fmt.Sprintf("the local address %v is not on this host", local),
		Why:  "no packet leaves from an address that is not here, and none comes",
		Cure: "give an address of this host as --local, or none, or add the address",
	}
	if s.device != (link{}) {
		r.Commands = []string{command("ip", "addr", "add", local.String()+"/32", "dev", s.device.name)}
	}
	return []Result{r}
}

// remote looks for a remote address that is none of another host.
func (e *exam) remote(s *subject) []Result {
	switch s.path.RouteType {
	case 0:
		return nil
	case unix.RTN_LOCAL:
		return []Result{{
			Status: Failure, Saw: fmt.Sprintf("the remote address %v is this host's own", s.Config.Remote),
			Why: "packets of the tunnel come back to this host", Cure: "give the other end's address as --remote",
		}}
	case unix.RTN_BROADCAST, unix.RTN_MULTICAST:
		return []Result{{
			Status: Failure, Saw: fmt.Sprintf("the remote address %v is a broadcast address", s.Config.Remote),
			Why: "the kernel refuses packets to it", Cure: "give the address of one host as --remote",
		}}
	}
	return good("%v is another host's address", s.Config.Remote)
}

// routeTypes are the types of routes that lead nowhere, as ip-route(8) names them.
var routeTypes = map[int]string{unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit"}

// route looks for a route to the remote end.
func (e *exam) route(s *subject) []Result {
	if s.path.Reason == "" {
		saw := fmt.Sprintf("%v is reached by %s", s.Config.Remote, s.device.name)
		if s.device == (link{}) {
			saw = fmt.Sprintf("there is a route to %v", s.Config.Remote)
		}
		if g := s.path.Gateway; g.IsValid() && g != s.Config.Remote {
			saw += fmt.Sprintf(", gateway %v", g)
		}
		return good("%s", saw)
	}
	r := Result{
		Status: Failure, Saw: fmt.Sprintf("no route to %v: %s", s.Config.Remote, s.path.Reason),
		Why:  "no packet of the tunnel leaves",
		Cure: fmt.Sprintf("add a route: ip route add %v via GATEWAY", s.Config.Remote),
	}
	if s.Config.Device != "" && s.path.Bound == 0 {
		r.Saw = "there is no device " + s.Config.Device
		r.Cure = "give the device of outer packets as --dev, or none"
		return []Result{r}
	}
	if down := e.downLink(s); down != "" {
		r.Saw += "; " + down + " is down"
		r.Cure, r.Commands = "", []string{command("ip", "link", "set", down, "up")}
		return []Result{r}
	}
	if best, ok := bestRoute(s.Config.Remote, 0); ok && routeTypes[best.Type] != "" {
		to, _ := destination(best)
		word := routeTypes[best.Type]
		r.Saw = fmt.Sprintf("the route to %v is %s %v", s.Config.Remote, word, to)
		r.Cure, r.Commands = "remove that route, if another leads to the remote end", []string{command("ip", "route", "delete", word, to.String())}
	}
	return []Result{r}
}

// downLink returns the name of a link that is down and would lead to the remote end, or has
// the local address.
func (e *exam) downLink(s *subject) string {
	for _, l := range e.links() {
		if l.Attrs().Flags&net.FlagUp != 0 {
			continue
		}
		for _, a := range e.addresses()[l.Attrs().Index] {
			if p, ok := prefix(a.IPNet); ok && (p.Addr() == s.Config.Local || p.Contains(s.Config.Remote)) {
				return l.Attrs().Name
			}
		}
	}
	return ""
}

// loop looks for a route to the remote end that leads into the tunnel, or will when it starts.
func (e *exam) loop(s *subject) []Result {
	var via netip.Prefix // that leads into the tunnel
	if s.here() {
		if s.path.Reason == "" && s.path.Device != s.Index || s.path.Device == 0 {
			return good("the route to %v does not lead into the tunnel", s.Config.Remote)
		}
		via = netip.PrefixFrom(s.Config.Remote, 32)
	} else if !s.Running {
		for _, p := range wantedPrefixes(s.Config) {
			if p.Contains(s.Config.Remote) && p.Bits() >= via.Bits() {
				via = p
			}
		}
	}
	if !via.IsValid() {
		return good("the route to %v does not lead into the tunnel", s.Config.Remote)
	}
	other, found := bestRoute(s.Config.Remote, s.Index)
	if p, isOne := destination(other); found && isOne && !s.Running && p.Bits() > via.Bits() {
		return good("the route to %v is more specific than %v by the tunnel", s.Config.Remote, via)
	}
	r := Result{
		Status: Failure, Saw: fmt.Sprintf("the route to %v leads into the tunnel itself", s.Config.Remote),
		Why:  "packets of the tunnel would go into the tunnel: it drops them",
		Cure: fmt.Sprintf("give %v a route of its own: ip route add %[1]v via GATEWAY", s.Config.Remote),
	}
	if found {
		words := []string{"ip", "route", "replace", s.Config.Remote.String() + "/32"}
		if other.Gw != nil {
			words = append(words, "via", other.Gw.String())
		}
		if l, err := netlink.LinkByIndex(other.LinkIndex); err == nil {
			r.Cure, r.Commands = "", []string{command(append(words, "dev", l.Attrs().Name)...)}
		}
	}
	return []Result{r}
}

// wantedPrefixes returns the destinations that a tunnel will have routes to by its link.
func wantedPrefixes(c tunnel.Config) (list []netip.Prefix) {
	for _, r := range c.Routes {
		if r.Table == 0 || r.Table == unix.RT_TABLE_MAIN {
			list = append(list, r.To)
		}
	}
	for _, a := range append([]netip.Prefix{c.Address}, c.Addresses...) {
		if a.IsValid() {
			list = append(list, a.Masked())
		}
	}
	if c.Peer.IsValid() {
		list = append(list, netip.PrefixFrom(c.Peer, 32))
	}
	return list
}

// nextHop looks for a next hop that does not answer.
func (e *exam) nextHop(s *subject) []Result {
	if s.path.Reason != "" || s.device == (link{}) || !s.path.Gateway.IsValid() {
		return nil
	}
	if e.neighbours()[neighbour{s.device.index, s.path.Gateway}]&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
		return []Result{{
			Status: Failure, Saw: fmt.Sprintf("%v does not answer ARP on %s", s.path.Gateway, s.device.name),
			Why:  "it is the next hop, and what is sent to it is lost",
			Cure: "look whether that host is up, and whether its address and the cable, VLAN or bridge are right",
		}}
	}
	return good("next hop %v", s.path.Gateway)
}

// mtu compares the link's MTU with that of the path.
func (e *exam) mtu(s *subject) []Result {
	if s.path.Reason != "" || s.path.MTU == 0 {
		return nil
	}
	fits, has := s.path.MTU-encap.IPIP.HdrLen, s.Config.MTU
	if s.Running {
		has = s.MTU
	}
	if has <= fits {
		return good("the path takes %d bytes, %d within the tunnel", s.path.MTU, fits)
	}
	r := Result{
		Status: Warning, Saw: fmt.Sprintf("the tunnel's MTU is %d, and the path takes %d bytes, %d within the tunnel", has, s.path.MTU, fits),
		Why:  "longer packets are fragmented, or refused with DF: where ICMP is filtered, connections hang",
		Cure: fmt.Sprintf("--mtu %d", fits),
	}
	if s.here() {
		r.Commands = []string{setMTU(s.Config.Name, fits)}
	}
	return []Result{r}
}

// setMTU is the command that sets a link's MTU, in bytes.
func setMTU(link string, mtu int) string {
	return command("ip", "link", "set", link, "mtu", strconv.Itoa(mtu))
}

// silence looks for a remote end that has never sent anything.
func (e *exam) silence(s *subject) []Result {
	if !s.Running {
		return nil
	}
	if s.Sent > 0 && s.Received == 0 {
		return []Result{{
			Status: Warning, Saw: fmt.Sprintf("%d packets were sent, and none has come", s.Sent),
			Why:  "the other end does not answer, or its answers do not arrive",
			Cure: "goipip doctor --probe " + s.Config.Remote.String(),
		}}
	}
	return good("%d packets sent, %d received", s.Sent, s.Received)
}
