package tun

import (
	"sync"
	"sync/atomic"
)

// drops is the last known count of the packets that the kernel dropped on their way to
// the queues.
type drops struct {
	mu   sync.Mutex // held while the kernel is asked
	last atomic.Uint64
}

// QueueDrops returns how many packets the kernel has dropped since Open because the
// ring of their queue was full: the link's tx_dropped (tun_net_xmit). Each call asks
// the kernel, which takes 10 to 20 µs, and waits while another request of the Host is
// under way. For a link that was deleted, or moved to another network namespace, it
// returns the last count that it saw. Any goroutine may call it, also after Close.
func (d *Device) QueueDrops() uint64 {
	d.drops.mu.Lock()
	defer d.drops.mu.Unlock()
	if n, err := d.host.txDropped(d.index); err == nil {
		d.drops.last.Store(n)
	}
	return d.drops.last.Load()
}

// LastQueueDrops returns what QueueDrops returned last, and waits for nothing.
func (d *Device) LastQueueDrops() uint64 { return d.drops.last.Load() }
