package oracle_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"goipip/internal/stats"
)

// tally counts things by name. The names of the reference's are those of
// ip-link(8); what only goipip counts has its reason for a name.
type tally map[string]int64

// add adds n times u.
func (t tally) add(u tally, n int64) {
	for name, v := range u {
		if t[name] += n * v; t[name] == 0 {
			delete(t, name)
		}
	}
}

func (t tally) String() string {
	if len(t) == 0 {
		return "nothing"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		parts = append(parts, fmt.Sprintf("%s %+d", name, t[name]))
	}
	return strings.Join(parts, ", ")
}

// netDev names the columns of /proc/net/dev (dev_seq_printf_stats). An empty name
// is a column that is not compared.
var netDev = [16]string{
	"rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "", "rx_frame", "", "",
	"tx_bytes", "tx_packets", "tx_errors", "tx_dropped", "", "collisions", "tx_carrier", "",
}

// parseNetDev reads a line of /proc/net/dev.
func parseNetDev(line string) (tally, error) {
	_, values, _ := strings.Cut(line, ":")
	fields := strings.Fields(values)
	if len(fields) != len(netDev) {
		return nil, fmt.Errorf("%q is no line of /proc/net/dev", line)
	}
	t := tally{}
	for i, name := range netDev {
		v, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return nil, err
		}
		if name != "" {
			t.add(tally{name: v}, 1)
		}
	}
	return t, nil
}

// ofLink returns goipip's counters as /proc/net/dev would show them.
func ofLink(l stats.LinkStats) tally {
	t := tally{}
	for name, v := range map[string]uint64{
		"rx_packets": l.RXPackets, "rx_bytes": l.RXBytes, "rx_errors": l.RXErrors,
		"rx_frame": l.RXLengthErrors + l.RXFrameErrors, "rx_dropped": l.RXDropped,
		"tx_packets": l.TXPackets, "tx_bytes": l.TXBytes, "tx_errors": l.TXErrors,
		"collisions": l.Collisions, "tx_carrier": l.TXCarrierErrors, "tx_dropped": l.TXDropped,
	} {
		t.add(tally{name: int64(v)}, 1)
	}
	return t
}
