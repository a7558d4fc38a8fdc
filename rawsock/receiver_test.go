package rawsock_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// Further addresses of the right host.
var (
	secondAddr = netip.MustParseAddr("10.0.0.3")
	thirdAddr  = netip.MustParseAddr("10.0.0.4")
)

// R2: each tunnel gets its own packets, whether its receiver is connected or not.
func TestR2_Tunnels(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"), right.AddAddr("eth0", thirdAddr.String()+"/24"))
	end := func(remote netip.Addr) config { return config{Local: leftAddr, Remote: remote} }

	first := startReceiving(newConnected(t, left, end(rightAddr)))
	second := startReceiving(newConnected(t, left, end(secondAddr)))
	unconnected := startReceiving(newReceiver(t, left, end(rightAddr)))

	fromFirst := newSender(t, right, reverse(end(rightAddr)))
	fromSecond := newSender(t, right, reverse(end(secondAddr)))
	fromThird := newSender(t, right, reverse(end(thirdAddr)))
	fromThird.mustSend(t, "3a")
	fromFirst.mustSend(t, "1a")
	fromSecond.mustSend(t, "2a", "2b")
	fromThird.mustSend(t, "3b")
	fromFirst.mustSend(t, "1b", "1c")
	fromSecond.mustSend(t, "2c")

	first.check(t, "1a", "1b", "1c")
	second.check(t, "2a", "2b", "2c")
	unconnected.check(t, "1a", "1b", "1c")
}

// What arrives while the receivers of a tunnel are opened, one after the other, comes
// to one of them at most, and other hosts' packets to none: a raw socket receives from
// the moment on when there is one, whatever it is bound to later.
func TestHazard13_NoDuplicatesAtStart(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"), left.AddAddr("eth0", thirdAddr.String()+"/24"))
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for _, cfg := range []config{
		rightEnd,
		{Local: secondAddr, Remote: leftAddr},
		{Local: rightAddr, Remote: thirdAddr},
	} {
		s := newSender(t, right, cfg)
		flood.Go(func() {
			rng := rand.New(rand.NewPCG(8, 8))
			for n := uint32(1); ; {
				for range 8 {
					inner := randomFlow(rng).packet(rng)[:packet.IPv4HdrLen+4]
					inner.SetID(uint16(n >> 16))
					p := wrap(rng, cfg, inner)
					p.SetID(uint16(n))
					s.Add(p, nil)
					n++
				}
				if s.Flush() != nil {
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	const rounds, shares = 5, 4
	var receivers [rounds][shares]*receiver
	for round := range rounds {
		for share := range shares {
			r := newShareReceiver(t, left, leftEnd, share, shares)
			receivers[round][share] = r
			if share%2 == 0 {
				must(t, r.Connect())
			}
		}
	}
	close(stop)
	flood.Wait()
	newSender(t, right, rightEnd).mustSend(t, "short") // shares 0 take what has no inner header
	for round := range rounds {
		seen := map[uint32]int{} // the share that has received a packet, by its number
		for share, r := range receivers[round] {
			for _, p := range drain(t, r) {
				if p.Source() != rightAddr.As4() || p.Destination() != leftAddr.As4() {
					t.Fatalf("share %d received a packet from %v to %v", share,
						netip.AddrFrom4(p.Source()), netip.AddrFrom4(p.Destination()))
				}
				if string(p.Payload()) == "short" {
					continue
				}
				n := uint32(packet.IPv4(p.Payload()).ID())<<16 | uint32(p.ID())
				if before, ok := seen[n]; ok {
					t.Fatalf("shares %d and %d received packet %d", before, share, n)
				}
				seen[n] = share
			}
		}
		if len(seen) == 0 && round < rounds-1 {
			t.Errorf("round %d: nothing was received", round)
		}
	}
}

// drain returns copies of what r has received. Nothing must be under way to it.
func drain(t *testing.T, r *receiver) (packets []packet.IPv4) {
	t.Helper()
	for r.Queued() {
		batch, err := r.Receive()
		must(t, err)
		for _, p := range batch {
			packets = append(packets, bytes.Clone(p))
		}
	}
	return packets
}

// Packets to other addresses of this host, or of other protocols, are not the
// tunnel's.
func TestReceiver_OnlyLocal(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	g := startReceiving(newReceiver(t, right, rightEnd))

	newSender(t, left, config{Local: leftAddr, Remote: secondAddr}).mustSend(t, "for another address")
	s := newSender(t, left, leftEnd)
	other := outer(leftEnd, 4)
	other.SetProtocol(unix.IPPROTO_GRE)
	s.Add(other, []byte("gre?"))
	s.Add(outer(leftEnd, 3), []byte("end"))
	must(t, s.Flush())
	g.check(t, "end")
}

func TestReceiver_Closed(t *testing.T) {
	left, _ := newPair(t)
	for _, connected := range []bool{false, true} {
		r := newReceiver(t, left, leftEnd)
		if connected {
			must(t, r.Connect())
		}
		g := startReceiving(r)
		labtest.WaitParked(t, "rawsock.(*Receiver).Receive", 1)
		must(t, r.Close())
		if err := labtest.Within(t, "the end of Receive", g.err); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Receive: %v, want %v", err, os.ErrClosed)
		}
		if packets, err := r.Receive(); !errors.Is(err, os.ErrClosed) || len(packets) != 0 {
			t.Errorf("another Receive: %d packets, %v, want %v", len(packets), err, os.ErrClosed)
		}
		if err := r.Connect(); err == nil {
			t.Error("Connect works after Close")
		}
		if err := r.Close(); err != nil {
			t.Errorf("another Close: %v", err)
		}
	}
}

// A tunnel may be there before the route to its remote is.
func TestConnect_RouteLater(t *testing.T) {
	left, right := newPair(t)
	far := netip.MustParseAddr("192.168.8.101")
	must(t, right.AddAddr("eth0", far.String()+"/32"))
	r := newReceiver(t, left, config{Local: leftAddr, Remote: far})
	if err := r.Connect(); !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("Connect without a route: %v, want %v", err, unix.ENETUNREACH)
	}
	g := startReceiving(r)
	fromFar := newSender(t, right, config{Local: far, Remote: leftAddr})
	fromOther := newSender(t, right, rightEnd)
	fromFar.mustSend(t, "not connected")
	fromOther.mustSend(t, "not connected, other")
	g.check(t, "not connected")

	must(t, left.AddRoute(far.String()+"/32", rightAddr.String()), r.Connect())
	fromOther.mustSend(t, "connected, other")
	fromFar.mustSend(t, "connected")
	g.check(t, "connected")
	if err := r.Connect(); err != nil {
		t.Errorf("another Connect: %v", err)
	}
}

// A tunnel may be there before its local address is.
func TestReceiver_AddressLater(t *testing.T) {
	left, right := newPair(t)
	late := netip.MustParseAddr("10.0.0.99")
	cfg := config{Local: late, Remote: rightAddr}
	r := newReceiver(t, left, cfg)
	s := newSender(t, left, cfg)
	// EINVAL from older kernels than 6.18.
	if err := r.Connect(); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("Connect from an address that is not there: %v, want %v", err, unix.ENETUNREACH)
	}
	g := startReceiving(r)

	must(t, left.AddAddr("eth0", late.String()+"/24"))
	ping(t, right, late)
	must(t, r.Connect())
	newSender(t, right, reverse(cfg)).mustSend(t, "to the late address")
	g.check(t, "to the late address")

	back := startReceiving(newConnected(t, right, reverse(cfg)))
	s.mustSend(t, "from the late address")
	back.check(t, "from the late address")
}

// A receiver stays connected while its device is down.
func TestReceiver_DeviceDownAndUp(t *testing.T) {
	left, right := newPair(t)
	g := startReceiving(newConnected(t, right, rightEnd))
	s := newSender(t, left, leftEnd)
	s.mustSend(t, "before")
	g.check(t, "before")
	must(t, right.SetDown("eth0"), right.SetUp("eth0"))
	ping(t, left, rightAddr)
	s.mustSend(t, "after")
	g.check(t, "after")
}

// No descriptor is left, and none is inherited by child processes.
func TestDescriptors(t *testing.T) {
	left, _ := newPair(t)
	noDevice := rawsock.Route{Device: noSuchDevice}
	cycle := func() {
		must(t, left.Do(func() error {
			pair, second := leftEnd.pair(), rawsock.Pair{Local: leftAddr, Remote: secondAddr}
			r, err := rawsock.NewReceiver(0, 1)
			if err != nil {
				return err
			}
			s, err := rawsock.NewSender(leftAddr, nil)
			if err != nil {
				return err
			}
			g, err := rawsock.NewGuard()
			if err != nil {
				return err
			}
			p, err := rawsock.NewProber()
			if err != nil {
				return err
			}
			if err := r.Add(pair); err != nil {
				return err
			}
			_, mtuErr := p.MTU(noDevice)
			if r.Connect(noDevice) == nil || g.Connect(pair, noDevice) == nil || mtuErr == nil {
				return errors.New("a route by a device that is not there")
			}
			ask := leftEnd.route()
			ask.Local = leftEnd.Local
			_, err = p.MTU(ask)
			return errors.Join(err, r.Connect(leftEnd.route()), g.Connect(pair, leftEnd.route()), r.Add(second), g.Disconnect(),
				r.Close(), s.Close(), g.Close(), p.Close())
		}))
	}
	cycle()
	before := descriptors(t)
	for range 50 {
		cycle()
	}
	if after := descriptors(t); len(after) != len(before) {
		t.Errorf("%d descriptors became %d in 50 cycles", len(before), len(after))
	}

	newReceiver(t, left, leftEnd)
	newGuard(t, left, leftEnd)
	newSender(t, left, leftEnd)
	for _, fd := range descriptors(t) {
		protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil || protocol != packet.ProtoIPIP && protocol != unix.IPPROTO_RAW {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the socket of protocol %d is inherited: flags %#x, %v", protocol, flags, err)
		}
	}
}
