package engine

import (
	"net/netip"

	"goipip/encap"
	"goipip/rawsock"
)

// Plan is what loops go by for the packets of a tunnel. It never changes; another takes its
// place.
type Plan struct {
	Outer encap.Outer
	Path  Path
	// Route is how the packets leave. Its Local follows from Outer.
	Route rawsock.Route
	// Away tells that the link is in another network namespace than the sockets: this
	// host's addresses are not those of the link's host (G2), and no route of this host
	// leads into it.
	Away bool
	// RelayICMP has inner senders told at once of ICMP errors, as RFC 2003 §4 has it.
	RelayICMP bool
	// MaxMSS is the largest MSS that TCP may agree on for segments through the tunnel, in
	// bytes; 0 leaves that to the hosts.
	MaxMSS uint16
	// Keepalive is told of packets from the remote end; nil without.
	Keepalive *Keepalive
}

// Path is the way to the remote end.
type Path struct {
	MTU          int  // of the whole path, as far as known, in bytes
	Locked       bool // DF is to be cleared, see underlay.Path
	Loop         bool // it leads into the tunnel itself (T4)
	LocalMissing bool // there is no route then (T3), or with any local address, none that has a source (O11)
	// Reported is what routers have reported of the MTU and the kernel does not know, in
	// bytes; 0 for none (O6).
	Reported int
}

// plan is a Plan with what is made of it.
type plan struct {
	Plan
	encap *encap.Encapsulator
	decap *encap.Decapsulator
	probe rawsock.Route // for a Prober
}

func (e *Engine) newPlan(p Plan, ids *encap.IDs) (_ *plan, err error) {
	n := &plan{Plan: p, probe: p.Route}
	if n.encap, err = encap.NewEncapsulator(p.Outer, ids, &e.host); err != nil {
		return nil, err
	}
	host := &e.host
	if p.Away {
		host = nil
	}
	if n.decap, err = encap.NewDecapsulator(p.Outer, host); err != nil {
		return nil, err
	}
	local := n.pair().Local
	n.probe.Local, n.Route.Local = local, local
	switch {
	case p.Route.Device == 0 && local == e.local:
		n.Route.Local = netip.Addr{} // which the senders are bound to
	case !local.IsValid():
		n.Route.Local = netip.IPv4Unspecified()
	}
	return n, nil
}

// pair is what the tunnel receives. With any local address, the source of what it sends
// takes no part, in route lookups either (O11).
func (p *plan) pair() rawsock.Pair {
	if p.Outer.AnyLocal {
		return rawsock.Pair{Remote: p.Outer.Remote}
	}
	return rawsock.Pair{Local: p.Outer.Local, Remote: p.Outer.Remote}
}
