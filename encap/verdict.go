package encap

// Verdict is what becomes of a packet: Deliver, or the one reason for which it
// is dropped and counted (G5).
type Verdict uint8

// The verdicts.
const (
	Deliver     Verdict = iota
	NotIPv4             // sent: the inner packet is something else, IPv6 say (T1, G6)
	Malformed           // sent: no whole header, or too long for an outer one (T1); received: a header that lies (R4)
	TTLExpired          // the inner TTL is 0 (G3)
	Loop                // sent: the packet was in this tunnel before (G4)
	WrongPeer           // received: not from our remote to our local address (G1)
	BadECN              // received: CE outside, not ECN-capable inside (R5)
	Martian             // received: an inner address that cannot come from there (G2)
	NumVerdicts         // how many there are
)

var verdictNames = [NumVerdicts]string{
	"deliver", "not_ipv4", "malformed", "ttl_expired", "loop", "wrong_peer", "bad_ecn", "martian",
}

// String returns the verdict's name as counters and logs show it.
func (v Verdict) String() string { return verdictNames[v] }
