package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"goipip/internal/tunnel"
)

// readRules reads the rules of firewalls.
func (e *exam) readRules() {
	nft, err := readNFTables()
	legacy, legacyErr := readIPTables()
	e.rules = append(nft, legacy...)
	e.rulesErr = errors.Join(err, legacyErr)
}

// filterProtocol looks for rules that name the wrong protocol.
func (e *exam) filterProtocol(host) []Result {
	if e.rulesErr != nil {
		r := Result{
			Status: Warning, Saw: e.rulesErr.Error(), Why: "a firewall may drop packets of protocol 4 unseen",
			Cure: "run goipip doctor as root",
		}
		if errors.Is(e.rulesErr, errNoIPTables) {
			r.Cure = "install iptables, or look at its rules with the program that made them"
		} else if !errors.Is(e.rulesErr, fs.ErrPermission) {
			r.Cure = "look at the rules yourself: nft list ruleset"
		}
		return []Result{r}
	}
	var wrong, commands []string
	for _, s := range e.rules {
		for _, r := range s.wrong94() {
			wrong = append(wrong, r.name)
			if r.replace94 != "" {
				commands = append(commands, r.replace94)
			}
		}
	}
	if len(wrong) == 0 {
		return good("no rule of a firewall is for protocol 94")
	}
	slices.Sort(wrong)
	slices.Sort(commands)
	r := Result{
		Status: Warning, Saw: "protocol 94 is let in: " + strings.Join(wrong, "; "),
		Why:      `ipip is protocol 4; what /etc/protocols, nft and iptables call "ipip" is 94, another one, and their "ipencap" is 4`,
		Commands: commands,
	}
	if len(commands) < len(wrong) {
		r.Cure = "write 4 or ipencap for 94 or ipip in these rules (nft -a list ruleset)"
	}
	return []Result{r}
}

// filterCost looks for what keeps packets from the packet socket.
func (e *exam) filterCost(host) []Result {
	found := ""
	minded := len(e.subjects) == 0
	for _, s := range e.subjects {
		found = s.path.Filtered
		minded = minded || s.Config.Transmit == tunnel.TransmitAuto
	}
	if len(e.subjects) == 0 && e.watcher != nil {
		// The answer is the same for every remote end.
		found = e.path(tunnel.Config{Remote: netip.AddrFrom4([4]byte{127, 0, 0, 1})}).Filtered
	}
	switch {
	case found == "":
		return good("nothing filters IPv4 here")
	case !minded:
		return good("%s, and no tunnel minds", found)
	}
	return []Result{{
		Status: Warning, Saw: found,
		Why: "with filters or IPsec policies for IPv4, even empty ones, packets leave by the raw socket: " +
			"a TCP stream is a third slower, and --fast-path auto does without",
		Cure: "remove what is not needed, or put it into another network namespace; or say --tx raw if speed is of no concern",
	}}
}

// filterInput looks for chains that drop packets from the remote end.
func (e *exam) filterInput(s *subject) []Result {
	return e.blocked("protocol 4 from "+s.remote(), outerFrom(s.Config.Remote, s.source(), s.device))
}

// filterOutput looks for chains that drop packets to the remote end.
func (e *exam) filterOutput(s *subject) []Result {
	return e.blocked("protocol 4 to "+s.remote(), outerTo(s.Config.Remote, s.source(), s.device, s.Config.Mark))
}

// filterForward looks for chains that drop packets between the tunnel and a network behind this host.
func (e *exam) filterForward(s *subject) []Result {
	network, behind := e.routed(s)
	if !network.IsValid() {
		return nil
	}
	tun := link{s.Index, s.Config.Name}
	return e.blocked(fmt.Sprintf("packets between %s and %s", behind.name, tun.name), forwarded(behind, tun), forwarded(tun, behind))
}

// remote is the remote address as text.
func (s *subject) remote() string {
	if !s.Config.Remote.IsValid() {
		return "anywhere"
	}
	return s.Config.Remote.String()
}

// source is the outer address of this end; not valid if not known.
func (s *subject) source() netip.Addr {
	if s.Config.Local.IsValid() {
		return s.Config.Local
	}
	return s.path.Source
}

// blocked is the result for flows, which what names.
func (e *exam) blocked(what string, flows ...flow) []Result {
	if e.rulesErr != nil {
		return nil // filterProtocol says so
	}
	var found []blocker
	for _, f := range flows {
		for _, s := range e.rules {
			found = append(found, s.blockers(f)...)
		}
	}
	if len(found) == 0 {
		return good("no firewall drops %s", what)
	}
	r := Result{Status: Failure, Why: "none of these packets pass"}
	switch slices.MinFunc(found, func(a, b blocker) int { return int(a.kind) - int(b.kind) }).kind {
	case dropsNew:
		r.Status, r.Why = Warning, "they pass as replies only: in this direction the tunnel works while packets go the other way"
	case dropsSome:
		r.Status, r.Why = Warning, "some of them may not pass: the rule has conditions that depend on the packet or the time"
	}
	var saw []string
	for _, b := range found {
		saw = append(saw, fmt.Sprintf("%s drops %s: %s", b.chain, what, b.by))
		r.Commands = append(r.Commands, b.insert)
	}
	slices.Sort(saw)
	slices.Sort(r.Commands)
	r.Saw, r.Commands = strings.Join(slices.Compact(saw), "; "), slices.Compact(r.Commands)
	return []Result{r}
}
