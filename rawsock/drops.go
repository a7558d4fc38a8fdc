package rawsock

// dropCount makes one count of a socket's drops, which the kernel counts in 32 bits.
type dropCount struct {
	last uint32 // as the kernel said
}

// grown returns by how much the kernel's count, which is now, has grown: by less than 2³².
func (c *dropCount) grown(now uint32) uint64 {
	n := now - c.last
	c.last = now
	return uint64(n)
}

// receiverDrops are what a receiver has dropped.
type receiverDrops struct {
	socket  dropCount       // of the newest socket
	pairs   map[Pair]uint64 // as read last; a pair stays here when it is removed
	unknown uint64
}

// PairDrops returns how many packets of a pair found no room, since the pair was first
// added. After Remove or Close it returns the last value. Any goroutine may call it, at
// least once in 2³² drops.
//
// Where NeedsGuard is not nil, only the drops of a single pair are known, together with
// those by an IPsec policy. A full socket counts before it looks at its filter
// (raw_v4_input in net/ipv4/raw.c): of several receivers each may count packets of the
// others' shares, and before Connect those of other pairs. Then counts are upper bounds.
func (r *Receiver) PairDrops(p Pair) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.pairs[p]; ok && !r.closed {
		if r.credit != nil {
			r.updatePairDrops(p)
		} else {
			r.settleDrops()
		}
	}
	return r.drops.pairs[p]
}

// Drops returns how many packets the receiver has dropped of which it is not known to what
// pair they belonged, since NewReceiver: those that an IPsec policy did not allow, and
// where NeedsGuard is not nil, those of several pairs that found no room. Packets of
// unknown pairs are none. Any goroutine may call it, at least once in 2³² drops; after
// Close it returns the last value.
func (r *Receiver) Drops() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.settleDrops()
	}
	return r.drops.unknown
}

// updatePairDrops reads what the credit's filter has counted for a pair.
func (r *Receiver) updatePairDrops(p Pair) {
	if n, err := r.credit.drops(p); err == nil {
		r.drops.pairs[p] = n
	}
}

// settleDrops adds what the socket has counted since last time to the count that it is for,
// which a change of the pairs changes.
func (r *Receiver) settleDrops() { r.settleSocketDrops(r.last) }

func (r *Receiver) settleSocketDrops(l *inlet) {
	_ = l.fd.Control(func(fd int) error {
		now, err := socketDrops(fd)
		if err != nil {
			return err
		}
		n := r.drops.socket.grown(now)
		if r.credit == nil && len(r.pairs) == 1 {
			for p := range r.pairs {
				r.drops.pairs[p] += n
			}
			return nil
		}
		r.drops.unknown += n
		return nil
	})
}
