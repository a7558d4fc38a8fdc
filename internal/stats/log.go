package stats

import "log/slog"

// LogValue shows the packets that were passed, and the drops that there were, as
// dropped_REASON.
func (d Direction) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Uint64("packets", d.Packets), slog.Uint64("bytes", d.Bytes)}
	for reason, n := range d.Drops.All() {
		attrs = append(attrs, slog.Uint64("dropped_"+reason.String(), n))
	}
	return slog.GroupValue(attrs...)
}

// LogValue shows what Linux would count as errors and drops of the link, under the names
// of ip -s -s link show.
func (l LinkStats) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("rx_errors", l.RXErrors), slog.Uint64("rx_length_errors", l.RXLengthErrors),
		slog.Uint64("rx_frame_errors", l.RXFrameErrors), slog.Uint64("rx_dropped", l.RXDropped),
		slog.Uint64("tx_errors", l.TXErrors), slog.Uint64("tx_carrier_errors", l.TXCarrierErrors),
		slog.Uint64("collisions", l.Collisions), slog.Uint64("tx_dropped", l.TXDropped),
	)
}

// Attrs are s as attributes of a log line.
func (s Snapshot) Attrs() []any {
	return []any{"tx", s.TX, "rx", s.RX, "link", s.Link()}
}
