package oracle_test

import (
	"testing"
	"time"
)

// noWays are routes to the far end that lead nowhere, in the words of ip-route(8),
// and how the reference counts them, less how goipip does.
var noWays = []struct {
	rule, name, script string
	counted            tally
}{
	{"T4", "into the tunnel", "", nil},
	{"T3", "unreachable", "ip route add unreachable 192.168.8.0/24", nil},
	{"T3", "blackhole", "ip route add blackhole 192.168.8.0/24", nil},
	// EACCES is what a packet filter says too, which is no carrier error to Linux.
	{"T3", "prohibit", "ip route add prohibit 192.168.8.0/24", tally{"tx_carrier": 1, "tx_errors": 1, "tx_dropped": -1}},
}

// testNoWay sends packets into tunnels without a way out, which must count them.
func (r *rig) testNoWay(t *testing.T) {
	for _, way := range noWays {
		t.Run(way.rule+"_"+way.name, func(t *testing.T) {
			r.begin(t)
			r.script("ip route del 192.168.8.0/24\n" + way.script)
			defer r.script(routeScript)
			teller := teller{tags: &r.tags}
			var (
				m     mismatch
				ok    bool
				wrong tally
			)
			for start := time.Now(); ; { // goipip looks at the route now and then
				r.openBooks(false)
				if !anyLocal { // which goipip counts as the reference does
					r.books.expect(way.counted)
				}
				m, ok = r.do(teller.into(100, 0))
				wrong = r.closeBooks()
				if ok && len(wrong) == 0 {
					return
				}
				if time.Since(start) > learnTime {
					break
				}
			}
			t.Errorf("counters of %s less those of %s: %v; %v", deviceNames[0], deviceNames[1], wrong, m)
		})
	}
}
