package tunnel

import (
	"log/slog"
	"net/netip"
	"sync"

	"goipip/internal/engine"
	"goipip/internal/underlay"
	"goipip/rawsock"
	"goipip/tun"
)

// Host is what the tunnels of one network namespace share: what is known of the namespace,
// and the Engine that carries their packets.
type Host struct {
	log      *slog.Logger
	workers  int
	underlay *underlay.Watcher
	devices  *tun.Host

	probing sync.Mutex
	prober  *rawsock.Prober

	mu     sync.Mutex
	engine *engine.Engine // nil before the first tunnel
	fast   fastHost

	closing chan struct{} // holds one for each device that is being closed
}

// maxClosing is how many devices are closed at once. Each takes a thread for some 20 ms,
// most of which the kernel waits (synchronize_net).
const maxClosing = 16

// OpenHost returns a Host for the network namespace of the calling thread, whose Engine has
// as many workers as given. Its goroutines log, so log must not block.
func OpenHost(workers int, log *slog.Logger) (*Host, error) {
	h := &Host{log: log, workers: workers, closing: make(chan struct{}, maxClosing)}
	var err error
	if h.underlay, err = underlay.Open(log); err != nil {
		return nil, err
	}
	if h.devices, err = tun.NewHost(); err != nil {
		h.underlay.Close()
		return nil, err
	}
	if h.prober, err = rawsock.NewProber(); err != nil {
		h.underlay.Close()
		h.devices.Close()
		return nil, err
	}
	return h, nil
}

// probe asks the kernel for the MTU of a route in bytes, and its source.
func (h *Host) probe(r rawsock.Route) (mtu int, source netip.Addr, err error) {
	h.probing.Lock()
	defer h.probing.Unlock()
	return h.prober.Path(r)
}

// data returns the Engine, and opens it for the first tunnel, which is from local, or with
// the zero Addr from any address.
func (h *Host) data(local netip.Addr) (_ *engine.Engine, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.engine != nil {
		return h.engine, nil
	}
	h.engine, err = engine.Open(engine.Config{Workers: h.workers, Local: local, Log: h.log})
	if err != nil {
		return nil, err
	}
	h.underlay.FollowAddresses(h.engine.SetAddresses)
	return h.engine, nil
}

// Unattributed is the Engine's.
func (h *Host) Unattributed() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.engine == nil {
		return 0
	}
	return h.engine.Unattributed()
}

// Alive is the Engine's.
func (h *Host) Alive() bool {
	h.mu.Lock()
	e := h.engine
	h.mu.Unlock()
	return e == nil || e.Alive()
}

// Conflict is the Watcher's.
func (h *Host) Conflict() string { return h.underlay.Conflict() }

// Err is the Engine's.
func (h *Host) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.engine == nil {
		return nil
	}
	return h.engine.Err()
}

// FollowDevice calls f whenever what FirstAddress returns of a device may have changed, until
// cancel. f must neither wait nor call the Host.
func (h *Host) FollowDevice(name string, f func()) (cancel func()) {
	return h.underlay.FollowDevice(name, f)
}

// FirstAddress returns the first IPv4 address of a device, of global scope if there is one. It
// waits for the kernel.
func (h *Host) FirstAddress(device string) (netip.Addr, error) {
	return h.underlay.FirstAddress(device)
}

// Close closes what the tunnels shared, after the last of them.
func (h *Host) Close() {
	h.underlay.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.engine != nil {
		h.engine.Close()
	}
	if h.fast.host != nil {
		h.fast.host.Close()
	}
	h.devices.Close()
	h.prober.Close()
}
