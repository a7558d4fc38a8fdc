package rawsock

import "sync"

// dropCount makes one count of a socket's drops, which the kernel counts in 32 bits.
type dropCount struct {
	mu     sync.Mutex
	last   uint32 // as the kernel said
	total  uint64
	credit uint64 // drops by a credit, as read last
}

// update asks the kernel for its count, which has grown by less than 2³², and returns
// the total, with credit, which ask may set. After an error the total stays. The lock
// keeps the answers in order.
func (c *dropCount) update(ask func() (uint32, error)) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now, err := ask(); err == nil {
		c.total += uint64(now - c.last)
		c.last = now
	}
	return c.total + c.credit
}

// Drops returns how many packets found no room on the socket, or were not allowed
// by an IPsec policy, since NewReceiver. Any goroutine may call it, at least once in
// 2³² drops; after Close it returns the last value.
//
// Where NeedsGuard is not nil, a full socket counts before it looks at its filter
// (raw_v4_input in net/ipv4/raw.c). So of several receivers each may count packets of
// the others' shares, and before Connect those of other tunnels: their counts are upper
// bounds.
func (r *Receiver) Drops() uint64 {
	return r.drops.update(func() (n uint32, err error) {
		err = r.fd.Control(func(fd int) error {
			if r.credit != nil {
				r.drops.credit = r.credit.drops()
			}
			n, err = socketDrops(fd)
			return err
		})
		return n, err // os.ErrClosed after Close
	})
}
