package engine

import "goipip/internal/stats"

// Stats returns the counters of all queues together, with what the kernel dropped
// before the tunnel saw it (G5).
func (t *Tunnel) Stats() stats.Snapshot {
	var s stats.Snapshot
	for _, tx := range t.transmits {
		tx.count.AddTo(&s.TX)
	}
	for _, rx := range t.receives {
		rx.count.AddTo(&s.RX)
		s.RX.Drops[stats.RcvbufFull] += rx.receiver.Drops()
	}
	s.TX.Drops[stats.QueueFull] += t.device.QueueDrops()
	return s
}
