package tunnel_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
)

// heldBytes is what the queue of a slow device holds: more than any usual socket buffer.
const heldBytes = 16 << 20

// stuck is a tunnel whose packets leave a by eth0, which hardly sends any and has its
// queue full of them. By eth1, packets could leave.
type stuck struct {
	*network
	before stats.Direction // when the queue was empty
}

func newStuck(t *testing.T, via tunnel.TransmitPath) *stuck {
	t.Helper()
	labtest.Need(t, "ip")
	s := &stuck{network: across(t)}
	needSendBuffer(t, s.a.host)
	s.secondUplink(t)
	// No ARP, which would be among the packets in the queue.
	for dev, port := range map[string]string{"eth0": "a0", "eth1": "a1"} {
		link, err := s.r1.Netlink().LinkByName(port)
		must(t, err)
		gateway := map[string]string{"eth0": "192.168.6.1", "eth1": "192.168.9.1"}[dev]
		s.types(t, fmt.Sprintf("ip neigh replace %s dev %s lladdr %v nud permanent", gateway, dev, link.Attrs().HardwareAddr))
	}
	s.start(t, func(c *tunnel.Config) { c.Transmit = via })
	if via == tunnel.TransmitAuto {
		s.takes(t, tunnel.TransmitPacket)
	}
	eth0, err := s.a.host.Netlink().LinkByName("eth0")
	must(t, err)
	const rate = 500 // bytes a second: a packet takes seconds, and the whole queue hours
	must(t, s.a.host.Netlink().QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Limit:      heldBytes,
		Buffer:     uint32(2000 * 1e9 / rate / 64), // 2000 bytes, in ticks of 64 ns (PSCHED_SHIFT)
	}))
	s.balance(t)
	s.before = s.a.tunnel.Stats().TX
	s.fill(t)
	return s
}

// needSendBuffer skips a test where the kernel refuses a send buffer that holds more than
// a device's queue does. With a full one, packets wait for the old way (rawsock).
func needSendBuffer(t *testing.T, h *netlab.Host) {
	t.Helper()
	must(t, h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20); err != nil {
			t.Skipf("needs CAP_NET_ADMIN in the first user namespace: SO_SNDBUFFORCE: %v", err)
		}
		return nil
	}))
}

// fill fills the queue, until it has refused some hundred packets once more.
func (s *stuck) fill(t *testing.T) {
	t.Helper()
	burst := make([][]byte, 500)
	for i := range burst {
		burst[i] = echoReply(stranger, s.b.inner, 1400)
	}
	congested := func() uint64 { return s.a.tunnel.Stats().TX.Drops[stats.Congested] }
	before := congested()
	labtest.WaitFor(t, "packets to be refused", func() bool {
		inject(t, s.a.host, "tun01", burst...)
		return congested() > before+500
	})
}

// queue returns what eth0's queue has taken, how much of that has left, and what it has
// refused.
func (s *stuck) queue(t *testing.T) (taken, left, refused uint64) {
	t.Helper()
	eth0, err := s.a.host.Netlink().LinkByName("eth0")
	must(t, err)
	qdiscs, err := s.a.host.Netlink().QdiscList(eth0)
	must(t, err)
	for _, q := range qdiscs {
		if count := q.Attrs().Statistics; q.Type() == "tbf" {
			return uint64(count.Basic.Packets + count.Queue.Qlen), uint64(count.Basic.Packets), uint64(count.Queue.Drops)
		}
	}
	t.Fatalf("eth0 has the queues %v", qdiscs)
	return 0, 0, 0
}

// exact fails the test unless the tunnel has counted each packet that the queue took as
// sent, and each that it refused as congested.
func (s *stuck) exact(t *testing.T) {
	t.Helper()
	s.balance(t)
	var taken, left, refused uint64
	var tx stats.Direction
	defer func() {
		if t.Failed() {
			t.Logf("the queue took %d packets, of which %d have left, and refused %d; counted is %+v", taken, left, refused, tx)
		}
	}()
	// Packets may still be on their way from the link's queue.
	labtest.WaitFor(t, "as many packets to be counted as the queue has", func() bool {
		taken, left, refused = s.queue(t)
		tx = s.a.tunnel.Stats().TX
		// sendmmsg(2) does not tell why it stopped after some packets. So the first packet
		// that found no room is tried twice, each time that there was room.
		congested := tx.Drops[stats.Congested]
		return tx.Packets-s.before.Packets == taken && congested <= refused && congested+left+1 >= refused
	})
	for reason := range tx.Drops.All() {
		if reason != stats.Congested && reason != stats.QueueFull {
			t.Errorf("dropped %v", tx.Drops)
		}
	}
}

// moves has packets to b leave by eth0 or eth1.
func (s *stuck) moves(t *testing.T, dev string) {
	t.Helper()
	gateway := map[string]string{"eth0": "192.168.6.1", "eth1": "192.168.9.1"}[dev]
	s.types(t, "ip route replace 192.168.8.0/24 via "+gateway+" dev "+dev)
}

// flood has datagrams wait for a's tunnel all the time.
func (s *stuck) flood(t *testing.T) (stop func()) {
	t.Helper()
	f := newFlow(t, s.a, s.b)
	ended := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
				f.out.Write(f.datagram) // It fails when the link is gone.
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(ended)
		writer.Wait()
		f.out.Close()
		f.in.Close()
	})
	t.Cleanup(stop)
	return stop
}

var slowPaths = map[string]tunnel.TransmitPath{"auto": tunnel.TransmitAuto, "raw": tunnel.TransmitRaw}

// What the queue of a device has no room for is lost, and counted, packet by packet.
func TestHazard3_FullQueueIsCounted(t *testing.T) {
	t.Parallel()
	for name, via := range slowPaths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, via)
			s.exact(t)
			stop := s.flood(t)
			s.fill(t)
			stop()
			s.exact(t)
		})
	}
}

// Packets for which there is another way take it at once, whatever waits in the old one.
func TestHazard3_RouteLeavesFullQueue(t *testing.T) {
	needsLocal(t)
	t.Parallel()
	for name, via := range slowPaths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, via)
			back := func() {
				s.moves(t, "eth0")
				s.fill(t)
			}
			if took := median(t, func() time.Duration {
				s.moves(t, "eth1")
				defer back()
				return s.passes(t)
			}); took > soon {
				t.Errorf("the first packet passes %v after the route has changed", took)
			}
			stop := s.flood(t)
			s.fill(t)
			if took := median(t, func() time.Duration {
				s.moves(t, "eth1")
				defer back()
				start, before := time.Now(), s.b.tunnel.Stats().RX.Packets
				labtest.WaitFor(t, "packets at the other end", func() bool { return s.b.tunnel.Stats().RX.Packets > before+500 })
				return time.Since(start)
			}); took > 2*soon {
				t.Errorf("500 packets have passed %v after the route has changed", took)
			}
			stop()
			s.balance(t)
		})
	}
}

// passes returns how long it takes until a ping is answered.
func (s *stuck) passes(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	labtest.WaitFor(t, "an answer", func() bool {
		return ping(t, s.a, s.b, netlab.PingOptions{Timeout: soon / 10}).Received > 0
	})
	return time.Since(start)
}

// A tunnel whose packets fill a queue ends as any other, and another takes its place.
func TestHazard3_EndsWithFullQueue(t *testing.T) {
	t.Parallel()
	for name, via := range slowPaths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, via)
			cfg := config(s.a, s.b)
			cfg.Transmit = via
			stop := s.flood(t)
			i := 0
			if took := median(t, func() time.Duration {
				s.fill(t)
				want := error(nil)
				start := time.Now()
				if i++; i%2 == 0 {
					want = tunnel.ErrDeleted
					must(t, s.a.host.DeleteLink("tun01"))
				} else {
					s.a.cancel()
				}
				if err := s.a.end(t); !errors.Is(err, want) {
					t.Errorf("Run = %v, want %v", err, want)
				}
				took := time.Since(start)
				s.a.start(t, cfg)
				return took
			}); took > 2*soon {
				t.Errorf("the tunnel takes %v to end", took)
			}
			stop()
		})
	}
}
