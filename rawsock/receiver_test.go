package rawsock_test

import (
	"errors"
	"net/netip"
	"os"
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

// R2: each tunnel gets its own packets; a receiver that is not connected gets
// those of all.
func TestR2_Tunnels(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"), right.AddAddr("eth0", thirdAddr.String()+"/24"))
	end := func(remote netip.Addr) rawsock.Config { return rawsock.Config{Local: leftAddr, Remote: remote} }

	first := startReceiving(newConnected(t, left, end(rightAddr)))
	second := startReceiving(newConnected(t, left, end(secondAddr)))
	all := startReceiving(newReceiver(t, left, end(rightAddr)))

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
	all.check(t, "3a", "1a", "2a", "2b", "3b", "1b", "1c", "2c")
}

// Packets to other addresses of this host, or of other protocols, are not the
// tunnel's.
func TestReceiver_OnlyLocal(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	g := startReceiving(newReceiver(t, right, rightEnd))

	newSender(t, left, rawsock.Config{Local: leftAddr, Remote: secondAddr}).mustSend(t, "for another address")
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

// A tunnel may be there before the way to its remote is.
func TestConnect_RouteLater(t *testing.T) {
	left, right := newPair(t)
	far := netip.MustParseAddr("192.168.8.101")
	must(t, right.AddAddr("eth0", far.String()+"/32"))
	r := newReceiver(t, left, rawsock.Config{Local: leftAddr, Remote: far})
	if err := r.Connect(); !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("Connect without a route: %v, want %v", err, unix.ENETUNREACH)
	}
	g := startReceiving(r)
	fromFar := newSender(t, right, rawsock.Config{Local: far, Remote: leftAddr})
	fromOther := newSender(t, right, rightEnd)
	fromFar.mustSend(t, "not connected")
	fromOther.mustSend(t, "not connected, other")
	g.check(t, "not connected", "not connected, other")

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
	cfg := rawsock.Config{Local: late, Remote: rightAddr}
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
	noDevice := leftEnd
	noDevice.Device = noSuchDevice
	cycle := func() {
		must(t, left.Do(func() error {
			r, err := rawsock.NewReceiver(leftEnd)
			if err != nil {
				return err
			}
			s, err := rawsock.NewSender(leftEnd, nil)
			if err != nil {
				return err
			}
			if _, err := rawsock.NewReceiver(noDevice); err == nil {
				return errors.New("a receiver by a device that is not there")
			}
			return errors.Join(r.Connect(), r.Close(), s.Close())
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
