package stats

// LinkCounter is the name of a counter that Linux keeps of a link, in struct
// rtnl_link_stats64.
type LinkCounter string

// The counters under which packets of a tunnel come.
const (
	RXPackets      LinkCounter = "rx_packets"
	RXLengthErrors LinkCounter = "rx_length_errors"
	RXFrameErrors  LinkCounter = "rx_frame_errors"
	RXDropped      LinkCounter = "rx_dropped"

	TXPackets       LinkCounter = "tx_packets"
	TXErrors        LinkCounter = "tx_errors"
	TXCarrierErrors LinkCounter = "tx_carrier_errors"
	Collisions      LinkCounter = "collisions"
	TXDropped       LinkCounter = "tx_dropped"
)

// LinkStats are a link's counters as the ipip module would count (T, R).
type LinkStats struct {
	RXPackets, RXBytes, TXPackets, TXBytes uint64

	RXErrors       uint64
	RXLengthErrors uint64 // among RXErrors
	RXFrameErrors  uint64 // among RXErrors
	RXDropped      uint64

	TXErrors        uint64
	TXCarrierErrors uint64 // among TXErrors
	Collisions      uint64 // among TXErrors
	TXDropped       uint64
}

// Link returns the counters as Linux has them. What Linux would have passed on, or
// does not count on the link, is among the dropped ones, but for G4's loops.
func (s Snapshot) Link() LinkStats {
	l := LinkStats{
		RXPackets: s.RX.Packets, RXBytes: s.RX.Bytes,
		TXPackets: s.TX.Packets, TXBytes: s.TX.Bytes,
	}
	for r, n := range s.TX.Drops.All() {
		l.add(r.TX(), n)
	}
	for r, n := range s.RX.Drops.All() {
		l.add(r.RX(), n)
	}
	return l
}

// add counts n drops under a counter, and under the one that it is among.
func (l *LinkStats) add(c LinkCounter, n uint64) {
	switch c {
	case RXLengthErrors:
		l.RXLengthErrors += n
		l.RXErrors += n
	case RXFrameErrors:
		l.RXFrameErrors += n
		l.RXErrors += n
	case RXDropped:
		l.RXDropped += n
	case TXCarrierErrors:
		l.TXCarrierErrors += n
		l.TXErrors += n
	case Collisions:
		l.Collisions += n
		l.TXErrors += n
	case TXErrors:
		l.TXErrors += n
	case TXDropped:
		l.TXDropped += n
	}
}

// Map returns the counters by their names.
func (l LinkStats) Map() map[string]uint64 {
	return map[string]uint64{
		"rx_packets": l.RXPackets, "rx_bytes": l.RXBytes, "tx_packets": l.TXPackets, "tx_bytes": l.TXBytes,
		"rx_errors": l.RXErrors, "rx_length_errors": l.RXLengthErrors, "rx_frame_errors": l.RXFrameErrors, "rx_dropped": l.RXDropped,
		"tx_errors": l.TXErrors, "tx_carrier_errors": l.TXCarrierErrors, "collisions": l.Collisions, "tx_dropped": l.TXDropped,
	}
}
