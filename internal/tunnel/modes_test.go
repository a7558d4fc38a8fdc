package tunnel_test

import (
	"flag"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"goipip/internal/tunnel"
)

// Ways to run all tests of this package.

// crowd has each tunnel under test share its host with another one: the sockets then serve
// several pairs of addresses, are not connected, and name the source of each message.
var crowd = flag.Bool("crowd", false, "run all tunnels beside another one in the same process")

// anyLocal leaves the choice of the local address to the routes (O11).
var anyLocal = flag.Bool("any", false, "run all tunnels without a local address")

// fast has the kernel carry what it can by itself.
var fast = flag.Bool("fast", false, "run all tunnels with the fast path")

// needsLocal skips a test that is about a certain local address, or whose other end takes
// packets from no other.
func needsLocal(t testing.TB) {
	t.Helper()
	if *anyLocal {
		t.Skip("needs tunnels with a local address")
	}
}

// needsEngine skips a test that is about packets that the fast path would carry.
func needsEngine(t testing.TB) {
	t.Helper()
	if *fast {
		t.Skip("needs packets that the engine carries")
	}
}

var crowded atomic.Int64 // so many times

// openTunnel opens a tunnel in the network namespace of the calling thread. After its end
// leave ends what it shared its host with.
func (s *site) openTunnel(cfg tunnel.Config) (_ *tunnel.Tunnel, leave func(), err error) {
	if !*crowd {
		t, err := tunnel.Open(cfg, s.log)
		return t, func() {}, err
	}
	host, err := tunnel.OpenHost(cfg.Queues, s.log)
	if err != nil {
		return nil, nil, err
	}
	number := crowded.Add(1)
	other, err := host.Open(tunnel.Config{
		Name: fmt.Sprintf("crowd%d", number), Queues: 1,
		Local: netip.MustParseAddr("198.51.100.1"), Remote: netip.AddrFrom4([4]byte{198, 18, byte(number >> 8), byte(number)}),
	}, quiet())
	if err != nil {
		host.Close()
		return nil, nil, err
	}
	leave = func() {
		other.Close()
		host.Close()
	}
	t, err := host.Open(cfg, s.log)
	if err != nil {
		leave()
	}
	return t, leave, err
}
