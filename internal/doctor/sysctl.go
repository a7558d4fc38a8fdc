package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// ipv4Conf reads a variable of a device, or of all or default; 0 where it cannot.
func ipv4Conf(device, name string) int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + device + "/" + name)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}

// setConf is the command that sets such a variable. A slash separates what a dot in the name of
// a device would.
func setConf(device, name string, value int) string {
	return command("sysctl", "-w", fmt.Sprintf("net/ipv4/conf/%s/%s=%d", device, name, value))
}

// strict is the rp_filter that drops what comes by another way than it would be answered
// (net.ipv4.conf.DEVICE.rp_filter in networking/ip-sysctl). The greater one of the device's and
// that of all devices holds.
const (
	strict = 1
	loose  = 2
)

func rpFilterOf(device string) int {
	return max(ipv4Conf("all", "rp_filter"), ipv4Conf(device, "rp_filter"))
}

// rpFilter looks for packets that the strict reverse path filter drops: outer ones that come by
// the tunnel's device and would be answered by another, and inner ones.
func (e *exam) rpFilter(s *subject) []Result {
	var list []Result
	device := s.device.name
	if device != "" && s.path.Reason == "" && rpFilterOf(device) == strict {
		// Lookups for the filter are without the tunnel's --dev, and without its mark unless src_valid_mark.
		back, err := routeTo(s.Config.Remote, s.source())
		if err != nil || back != s.device.index {
			r := strictResult(device,
				fmt.Sprintf("the route back to %v is not by %s, and rp_filter is strict there", s.Config.Remote, device),
				fmt.Sprintf("the kernel drops what the remote end sends by %s: the tunnel works in one direction only", device))
			if !e.has(s.device.index, s.source()) { // then packets may come by another device
				r.Status = Warning
			}
			list = append(list, r)
		}
	}
	if s.here() && rpFilterOf(s.Config.Name) == strict {
		for _, p := range e.routes()[s.Index] {
			if back, err := routeTo(inside(p), netip.Addr{}); err == nil && back != s.Index {
				list = append(list, strictResult(s.Config.Name,
					fmt.Sprintf("the route back to %v is not by %s, and rp_filter is strict there", inside(p), s.Config.Name),
					"the kernel drops packets from there that come out of the tunnel"))
				break
			}
		}
	}
	if list == nil {
		return good("rp_filter drops nothing of the tunnel")
	}
	return list
}

func strictResult(device, saw, why string) Result {
	return Result{
		Status: Failure, Saw: saw, Why: why,
		Cure:     "make rp_filter loose, or mend the route; below /etc/sysctl.d the setting stays",
		Commands: []string{setConf(device, "rp_filter", loose)},
	}
}

// inside returns an address of a prefix: of a network, the first host's.
func inside(p netip.Prefix) netip.Addr {
	if p.Bits() >= 31 {
		return p.Addr()
	}
	return p.Addr().Next()
}

// forwarding looks whether this host would have to forward packets for the tunnel, and does not.
func (e *exam) forwarding(s *subject) []Result {
	network, behind := e.routed(s)
	switch {
	case !network.IsValid():
		return nil // nothing suggests that it should
	case ipv4Conf(s.Config.Name, "forwarding") != 0 && ipv4Conf(behind.name, "forwarding") != 0:
		return good("packets are forwarded between %s and %s", behind.name, s.Config.Name)
	}
	return []Result{{
		Status: Warning, Saw: fmt.Sprintf("%v is reached by the tunnel, %s has another network, and this host does not forward packets", network, behind.name),
		Why:      "hosts behind this one do not reach those behind the other end",
		Cure:     "let it forward, if it is to be a router; below /etc/sysctl.d the setting stays",
		Commands: []string{"sysctl -w net.ipv4.ip_forward=1"},
	}}
}

// routed returns a network that is reached by a tunnel that runs, and a link to another network, if
// there are both: then this host may be a router between the two.
func (e *exam) routed(s *subject) (network netip.Prefix, behind link) {
	if !s.here() {
		return network, behind
	}
	behind = e.inside()
	for _, p := range e.routes()[s.Index] {
		if p.Bits() < 32 && behind != (link{}) {
			network = p
		}
	}
	return network, behind
}

// insideLink returns a link with a network that is neither a tunnel nor the way to a remote end, or
// the zero link.
func (e *exam) insideLink() link {
	outside := map[int]bool{}
	for _, s := range e.subjects {
		outside[s.device.index] = true
		outside[s.Index] = true
	}
	for _, l := range e.links() {
		a := l.Attrs()
		if a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && !outside[a.Index] && e.hasNetwork(a.Index) {
			return link{a.Index, a.Name}
		}
	}
	return link{}
}
