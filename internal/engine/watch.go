package engine

import (
	"context"
	"slices"
	"time"
)

// connectInterval is how often a tunnel without a route to its remote end looks
// for one.
const connectInterval = time.Second

// watch keeps up with changes of the host until it is stopped.
func (t *Tunnel) watch() {
	for t.host.wait() == nil {
		t.look()
	}
}

// look takes over what the loops use of the host: its own addresses (G2), and the
// MTU of the link. A link that was moved to another namespace keeps its last.
func (t *Tunnel) look() {
	own, err := t.host.addresses()
	if err != nil {
		t.log.Warn("cannot see this host's addresses: inner packets that claim to be from one of them pass", "err", err)
	} else {
		t.decap.SetOwn(own)
	}
	if mtu, ok := t.host.linkMTU(t.device.Index()); ok {
		t.mtu.Store(int64(mtu))
	}
}

// connect connects the receivers that are not connected yet. Without it the
// tunnel works too, but the kernel copies the packets of every other ipip tunnel
// to its sockets.
func (t *Tunnel) connect() error {
	for t.connected < len(t.receives) {
		if err := t.receives[t.connected].receiver.Connect(); err != nil {
			return err
		}
		t.connected++
	}
	return nil
}

// warnUnreachable connects for the first time, and tells a person what stands
// in the way of traffic.
func (t *Tunnel) warnUnreachable() {
	err := t.connect()
	own, listErr := t.host.addresses()
	switch {
	case listErr == nil && !slices.Contains(own, t.cfg.Local):
		t.log.Warn("the local address is not on this host: nothing arrives until it is (ip address add)",
			"local", t.cfg.Local)
	case err != nil:
		t.log.Warn("no route to the remote address: packets are dropped until there is one (ip route add)",
			"remote", t.cfg.Remote, "err", err)
	}
}

// reconnect connects the receivers when there is a way, in a tunnel that was
// started without.
func (t *Tunnel) reconnect(ctx context.Context) {
	tick := time.NewTicker(connectInterval)
	defer tick.Stop()
	for t.connected < len(t.receives) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if t.connect() == nil {
				t.log.Info("route to the remote address found", "remote", t.cfg.Remote)
			}
		}
	}
}
