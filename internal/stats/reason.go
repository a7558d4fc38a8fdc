// Package stats has one list of all ways in which a packet can end, and counters by
// that list. The packages that decide about packets return a [Reason]; the engine's
// loops count it; the log, goipip show and the metrics name it.
//
// Rule ids are those of docs/rules.md; docs/counters.md shows the list.
package stats

import (
	"slices"
	"strings"
)

// Reason is how a packet ends: it is delivered, or dropped and counted under one
// reason (G5).
type Reason uint8

// The reasons. What is dropped in both directions for the same reason has one.
const (
	Deliver Reason = iota
	// DeliverNonECT is a packet that is delivered, and worth a line in the log. It is a
	// reason rather than a second result of Decap, because a packet ends in one way and
	// the log line names it. Nothing is counted under it.
	DeliverNonECT

	NotIPv4
	Malformed
	TTLExpired
	Loop
	TooDeep
	NoRoute
	TooBig
	Congested
	Filtered
	SendError
	QueueFull

	WrongPeer
	BadECN
	Martian
	LinkDown
	LinkRefused
	RcvbufFull

	NumReasons // how many there are
)

// reasons describes each Reason. A direction without a counter is one in which the
// reason does not occur.
var reasons = [NumReasons]struct {
	name, help, rule string
	tx, rx           LinkCounter
}{
	Deliver:       {"deliver", "sent towards the remote address, or received and passed to the link", "T13, R6", TXPackets, RXPackets},
	DeliverNonECT: {"deliver_non_ect", "passed to the link, and logged: ECT outside, but the inner packet is not ECN-capable", "R5", "", RXPackets},

	NotIPv4:    {"not_ipv4", "the inner packet is not IPv4 (IPv6, for example)", "T1, G6", TXErrors, ""},
	Malformed:  {"malformed", "the inner header is incomplete or contradicts the packet's length, or the packet is too long for an outer one", "T1, R4", TXErrors, RXLengthErrors},
	TTLExpired: {"ttl_expired", "the inner TTL is 0", "G3", TXDropped, RXDropped},
	Loop:       {"loop", "the packet was in this tunnel before, or the route to the remote address leads into it", "T4, G4", Collisions, ""},
	TooDeep:    {"too_deep", "the packet is already inside four tunnels of this host", "T14", TXErrors, ""},
	NoRoute:    {"no_route", "no route to the remote address, no such local address, or the device on the way is down", "T3", TXCarrierErrors, ""},
	TooBig:     {"too_big", "longer than the path permits, and DF is set or no fragment would fit", "T7", TXErrors, ""},
	Congested:  {"congested", "a queue or buffer on the way out of this host is full", "G5", TXDropped, ""},
	Filtered:   {"filtered", "refused by netfilter or by a prohibit route", "G5", TXDropped, ""},
	SendError:  {"send_error", "the kernel refused to send the packet for any other reason", "G5", TXDropped, ""},
	QueueFull:  {"queue_full", "the link's queue was full: packets came faster than goipip sends", "G5", TXDropped, ""},

	WrongPeer:   {"wrong_peer", "not from the remote address to the local address", "G1", "", RXDropped},
	BadECN:      {"bad_ecn", "CE outside, but the inner packet is not ECN-capable", "R5", "", RXFrameErrors},
	Martian:     {"martian", "an inner address that cannot come from the other end: loopback, this host's own, multicast as source", "G2", "", RXDropped},
	LinkDown:    {"link_down", "the link is down", "G5", "", RXDropped},
	LinkRefused: {"link_refused", "the kernel did not accept the packet on the link", "G5", "", RXDropped},
	RcvbufFull:  {"rcvbuf_full", "the socket's receive buffer was full: packets came faster than goipip receives", "G5", "", RXDropped},
}

// Dropped reports whether the packet goes no further.
func (r Reason) Dropped() bool { return r > DeliverNonECT }

// String returns the reason's name as counters and logs show it.
func (r Reason) String() string { return reasons[r].name }

// Help returns what the reason means, in less than a sentence.
func (r Reason) Help() string { return reasons[r].help }

// Rule returns the ids of the rules that the reason comes from, separated by ", ".
func (r Reason) Rule() string { return reasons[r].rule }

// RuleOf returns those of the rules that hold for packets from the link, if sent is true, or
// else for packets from the remote end.
func (r Reason) RuleOf(sent bool) string {
	other := "T" // what Transmit has in docs/rules.md
	if sent {
		other = "R"
	}
	rules := slices.DeleteFunc(strings.Split(r.Rule(), ", "), func(id string) bool { return strings.HasPrefix(id, other) })
	return strings.Join(rules, ", ")
}

// TX returns the counter under which Linux would have a packet from the link. It is
// empty for what happens to received packets only.
func (r Reason) TX() LinkCounter { return reasons[r].tx }

// RX returns the counter under which Linux would have a packet from the remote end. It
// is empty for what happens to sent packets only.
func (r Reason) RX() LinkCounter { return reasons[r].rx }
