package encap

// Verdict is what becomes of a packet: it is delivered, or dropped and counted
// for the one reason that the verdict names (G5).
type Verdict uint8

// The verdicts.
const (
	Deliver       Verdict = iota
	DeliverNonECT         // received: ECT outside, not ECN-capable inside; delivered, and worth a line in a log (R5)
	NotIPv4               // sent: the inner packet is something else, IPv6 say (T1, G6)
	Malformed             // sent: no whole header, or too long for an outer one (T1); received: a header that lies (R4)
	TTLExpired            // the inner TTL is 0 (G3)
	Loop                  // sent: the packet was in this tunnel before (G4)
	TooDeep               // sent: the packet went through too many tunnels of this host (T14)
	WrongPeer             // received: not from our remote to our local address (G1)
	BadECN                // received: CE outside, not ECN-capable inside (R5)
	Martian               // received: an inner address that cannot come from there (G2)
	NumVerdicts           // how many there are
)

var verdictNames = [NumVerdicts]string{
	"deliver", "deliver_non_ect", "not_ipv4", "malformed", "ttl_expired", "loop", "too_deep",
	"wrong_peer", "bad_ecn", "martian",
}

// Dropped reports whether the packet goes no further.
func (v Verdict) Dropped() bool { return v > DeliverNonECT }

// String returns the verdict's name as counters and logs show it.
func (v Verdict) String() string { return verdictNames[v] }
