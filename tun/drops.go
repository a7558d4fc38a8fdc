package tun

import (
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// drops asks the kernel what it dropped on the way to the queues.
type drops struct {
	mu     sync.Mutex
	handle *netlink.Handle // of the device's first namespace; nil once closed
	last   uint64
}

// open works in the network namespace of the calling thread.
func (d *drops) open() (err error) {
	d.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	return err
}

func (d *drops) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handle != nil {
		d.handle.Close()
		d.handle = nil
	}
}

// of returns the count of the link with this index, or the last one where there is
// no such link any more.
func (d *drops) of(index int) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handle == nil {
		return d.last
	}
	if link, err := d.handle.LinkByIndex(index); err == nil {
		d.last = link.Attrs().Statistics.TxDropped
	}
	return d.last
}

// QueueDrops returns how many packets the kernel dropped since Open because the ring
// of their queue was full: the link's tx_dropped (tun_net_xmit). It asks the kernel
// each time, which takes some 20 µs. Of a link that was deleted, or moved to another
// network namespace, it returns the last count that it saw. Any goroutine may call
// it, also after Close.
func (d *Device) QueueDrops() uint64 { return d.drops.of(d.index) }
