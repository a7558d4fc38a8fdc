package engine

import (
	"maps"
	"sync/atomic"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// table finds a tunnel by its outer addresses. Any number of loops may look, while one
// goroutine at a time adds and removes: it replaces one of many small maps.
type table [256]atomic.Pointer[map[key]*Tunnel]

// key is the addresses of a received packet, as packet.IPv4.Addresses has them: the local
// one in the lower half, where 0 is for any.
type key uint64

// anyLocal is k for any local address.
func (k key) anyLocal() key { return k >> 32 << 32 }

func keyOf(p rawsock.Pair) key {
	header := make(packet.IPv4, packet.IPv4HdrLen)
	header.SetSource(p.Remote.As4())
	if p.Local.IsValid() {
		header.SetDestination(p.Local.As4())
	}
	return key(header.Addresses())
}

// shard takes the upper bits of a product, which depend on all bits of k.
func (t *table) shard(k key) *atomic.Pointer[map[key]*Tunnel] {
	const golden = 0x9e3779b97f4a7c15 // 2⁶⁴/φ
	return &t[k*golden>>56]
}

// lookUp returns the tunnel for packets with the addresses k, or nil: that between both, or
// else that of any local address (R2; ip_tunnel_lookup in net/ipv4/ip_tunnel.c). The compiler
// does not inline it, so the in loop says the same by itself.
func (t *table) lookUp(k key) *Tunnel {
	if found := t.find(k); found != nil {
		return found
	}
	return t.findAny(k)
}

// findAny returns the tunnel of any local address.
func (t *table) findAny(k key) *Tunnel { return t.find(k.anyLocal()) }

// find returns the tunnel of a key, or nil.
func (t *table) find(k key) *Tunnel {
	if m := t.shard(k).Load(); m != nil {
		return (*m)[k]
	}
	return nil
}

func (t *table) add(p rawsock.Pair, tunnel *Tunnel) {
	k := keyOf(p)
	next := map[key]*Tunnel{}
	if m := t.shard(k).Load(); m != nil {
		next = maps.Clone(*m)
	}
	next[k] = tunnel
	t.shard(k).Store(&next)
}

// remove does nothing if the pair is another tunnel's by now.
func (t *table) remove(p rawsock.Pair, tunnel *Tunnel) {
	k := keyOf(p)
	if t.find(k) != tunnel {
		return
	}
	next := maps.Clone(*t.shard(k).Load())
	delete(next, k)
	t.shard(k).Store(&next)
}
