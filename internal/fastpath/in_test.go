package fastpath

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"goipip/encap"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// Verdicts of programs.
const (
	next     = 0xffffffff // TCX_NEXT
	redirect = 7          // TC_ACT_REDIRECT
)

// ownAddr is an address of the host.
var ownAddr = netip.MustParseAddr("10.1.2.3")

// What comes by the device is delivered if and only if mustDeliver says so, and is then what
// the engine would deliver. Everything else is left as it is.
func TestEligibility_R2_R4_R5_G1_G2_G3(t *testing.T) {
	s := newSite(t)
	must(t, s.fast.SetAddresses([]netip.Addr{ownAddr, s.plan().Outer.Local}))
	var host encap.Host
	host.Set([]netip.Addr{ownAddr, s.plan().Outer.Local})
	r := rand.New(rand.NewPCG(3, 4))
	var took, left int
	for range plansTried {
		plan := randomPlan(r, s.plan())
		s.use(t, plan)
		engine, err := encap.NewDecapsulator(plan.Outer, &host)
		must(t, err)
		var frames [][]byte
		for range packetsTried {
			frames = append(frames, s.randomOuter(r, plan))
		}
		for i, result := range s.receiveAll(t, s.ether, frames...) {
			frame, verdict, result := frames[i], result.verdict, result.frame
			want := mustDeliver(plan, frame)
			if taken := verdict == redirect; taken != want || !taken && verdict != next {
				t.Fatalf("verdict %d, want it taken: %v: %+v: %x", verdict, want, plan, head(frame))
			}
			if !want {
				left++
				if !bytes.Equal(result, frame) {
					t.Fatalf("left to the engine as\n%x, was\n%x", head(result), head(frame))
				}
				continue
			}
			took++
			inner, why := engine.Decap(bytes.Clone(frame[etherLen:]))
			if why != stats.Deliver {
				t.Fatalf("taken, but the engine says %v: %+v, %x", why, plan, head(frame))
			}
			if !bytes.Equal(result[etherLen:], inner) {
				t.Fatalf("delivered\n%x, want\n%x", head(result[etherLen:]), head(inner))
			}
		}
	}
	bothWays(t, took, left)
}

// received is what became of a frame.
type received struct {
	verdict uint32
	frame   []byte
}

// receiveAll has the program look at frames that come by a device.
func (s *site) receiveAll(t *testing.T, device netlink.LinkAttrs, frames ...[]byte) (all []received) {
	t.Helper()
	return s.receiveMerged(t, device, 0, frames...)
}

// receiveMerged does so for superpackets, if size is not 0: that of each of their segments.
func (s *site) receiveMerged(t *testing.T, device netlink.LinkAttrs, size int, frames ...[]byte) (all []received) {
	t.Helper()
	// struct __sk_buff of linux/bpf.h, as far as bpf_prog_test_run_skb takes it.
	context := make([]uint32, 48)
	const ifindex, gsoSize = 10, 44
	context[ifindex], context[gsoSize] = uint32(device.Index), uint32(size)
	must(t, s.host.Do(func() error {
		for _, frame := range frames {
			copy(frame, device.HardwareAddr)
			options := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: context}
			verdict, err := s.fast.programs.GoipipIn.Run(&options)
			if err != nil {
				return err
			}
			all = append(all, received{verdict, options.DataOut})
		}
		return nil
	}))
	return all
}

// receive does so for one frame, by the device of the plan.
func (s *site) receive(t *testing.T, frame []byte) uint32 {
	t.Helper()
	return s.receiveAll(t, s.ether, frame)[0].verdict
}

// mustDeliver says which frames the program is to take, from docs/rules.md alone.
func mustDeliver(plan Plan, frame []byte) bool {
	etherType := uint16(frame[12])<<8 | uint16(frame[13])
	outer := packet.IPv4(frame[etherLen:])
	if plan.SendOnly || etherType != 0x0800 || !ordinary(outer, len(outer)) || outer.Protocol() != packet.ProtoIPIP || packet.Sum(outer[:packet.IPv4HdrLen], 0) != 0xffff ||
		outer.Source() != plan.Outer.Remote.As4() || outer.Destination() != plan.Outer.Local.As4() {
		return false
	}
	inner := outer[packet.IPv4HdrLen:]
	if !ordinary(inner, len(inner)) || inner.TTL() == 0 || inner.Protocol() == packet.ProtoIPIP {
		return false
	}
	src, dst := inner.Source(), inner.Destination()
	own := func(a [4]byte) bool { return a == ownAddr.As4() || a == netip.MustParseAddr("192.0.2.1").As4() }
	if inner.Protocol() == packet.ProtoTCP && !own(dst) && !takesDecapFlag() {
		return false
	}
	if plan.Inspect && inspected(inner) {
		return false
	}
	host := src[0] != 0 && src[0] != 127 && src[0] < 224 && !own(src)
	const ecn = 3
	return host && dst[0] != 0 && dst[0] != 127 && (inner.TOS()&ecn != 0 || outer.TOS()&ecn == 0)
}

// randomOuter returns a frame that comes by the device.
func (s *site) randomOuter(r *rand.Rand, plan Plan) []byte {
	inner := randomPacket(r, packet.IPv4HdrLen+r.IntN(1400))
	inner.SetSource(unicastAddr(r))
	inner.SetDestination(unicastAddr(r))
	if chance(r, 0.5) {
		inner.SetDestination(ownAddr.As4())
	}
	inner.UpdateChecksum()
	for len(inner) >= packet.IPv4HdrLen && chance(r, 0.2) {
		switch r.IntN(6) {
		case 0:
			inner.SetSource(ownAddr.As4())
		case 1:
			inner.SetSource([4]byte{[]byte{0, 127, 224, 255}[r.IntN(4)], 1, 2, 3})
		case 2:
			inner.SetDestination([4]byte{[]byte{0, 127, 224, 255}[r.IntN(4)], 1, 2, 3})
		default:
			inner = spoil(r, inner)
		}
	}
	outer := make(packet.IPv4, packet.IPv4HdrLen, packet.IPv4HdrLen+len(inner))
	outer.InitHeader()
	outer.SetTOS(uint8(r.Uint32()))
	outer.SetDF(chance(r, 0.8))
	outer.SetID(uint16(1 + r.IntN(65535))) // with 0, see TestTrain
	outer.SetTTL(uint8(1 + r.IntN(255)))
	outer.SetProtocol(packet.ProtoIPIP)
	outer.SetSource(plan.Outer.Remote.As4())
	outer.SetDestination(plan.Outer.Local.As4())
	outer = append(outer, inner...)
	outer.SetTotalLength(len(outer))
	outer.UpdateChecksum()
	for len(outer) >= packet.IPv4HdrLen && chance(r, 0.15) {
		switch r.IntN(6) {
		case 0:
			outer.SetSource(unicastAddr(r))
			outer.UpdateChecksum()
		case 1:
			outer.SetDestination(unicastAddr(r))
			outer.UpdateChecksum()
		case 2:
			outer[10]++
		case 3:
			outer.SetProtocol([]uint8{packet.ProtoTCP, 47, 94, 255}[r.IntN(4)])
			outer.UpdateChecksum()
		default:
			outer = spoil(r, outer)
		}
	}
	for len(outer) < packet.IPv4HdrLen { // which an Ethernet would pad
		outer = append(outer, 0)
	}
	frame := append([]byte{12: 0x08, 13: 0x00}, outer...)
	const shortestIPv6 = etherLen + 40 // that BPF_PROG_TEST_RUN takes
	if len(frame) >= shortestIPv6 && chance(r, 0.02) {
		frame[12], frame[13] = 0x86, 0xdd
	}
	return frame
}

// unicastAddr returns the address of some host.
func unicastAddr(r *rand.Rand) [4]byte {
	a := randomAddr(r).As4()
	a[0] = byte(1 + r.IntN(126))
	return a
}

// A packet counts for the device of the plan only.
func TestOtherDevice(t *testing.T) {
	s := newSite(t)
	p := s.plan()
	s.use(t, p)
	r := rand.New(rand.NewPCG(5, 6))
	for tried := 0; tried < 10; {
		frame := s.randomOuter(r, p)
		if !mustDeliver(p, frame) {
			continue
		}
		tried++
		for _, name := range []string{"eth0", "eth1"} {
			want := uint32(next)
			if name == "eth0" {
				want = redirect
			}
			if got := s.receiveAll(t, linkOf(t, s.host, name), frame)[0].verdict; got != want {
				t.Errorf("by %s: verdict %d, want %d", name, got, want)
			}
		}
	}
}

// tcpFrame returns a frame with a TCP packet of n bytes for an address, and the outer ID id. Nothing
// but these may keep the program from delivering it.
func (s *site) tcpFrame(r *rand.Rand, p Plan, to netip.Addr, n int, id uint16) []byte {
	for {
		frame := s.randomOuter(r, p)
		if !mustDeliver(p, frame) {
			continue
		}
		outer := packet.IPv4(frame[etherLen:])
		inner := append(outer[packet.IPv4HdrLen:], make([]byte, n)...)[:n]
		inner.SetProtocol(packet.ProtoTCP)
		inner.SetDestination(to.As4())
		inner.SetTOS(2) // ECT(0)
		inner.SetTotalLength(n)
		inner.UpdateChecksum()
		outer = append(outer[:packet.IPv4HdrLen:packet.IPv4HdrLen], inner...)
		outer.SetID(id)
		outer.SetTOS(3) // CE
		outer.SetTotalLength(len(outer))
		outer.UpdateChecksum()
		return append(frame[:etherLen:etherLen], outer...)
	}
}

// chosen reports whether the program wanted to deliver a frame of tcpFrame. A superpacket the
// kernel does not deliver here, because BPF_PROG_TEST_RUN does not say of what protocol it is;
// but by then it has been marked.
func (r received) chosen() bool {
	return r.verdict == redirect || packet.IPv4(r.frame[etherLen+packet.IPv4HdrLen:]).TOS() == 3
}

// Long TCP packets in quick succession that no kernel has cut are the engine's, and so are all
// others then. Those that a kernel has cut, which have numbers, are not.
func TestTrain(t *testing.T) {
	s := newSite(t)
	must(t, s.fast.SetAddresses([]netip.Addr{ownAddr}))
	p := s.plan()
	s.use(t, p)
	r := rand.New(rand.NewPCG(7, 8))
	const segment = 700
	long, numbered, short := s.tcpFrame(r, p, ownAddr, 1480, 0), s.tcpFrame(r, p, ownAddr, 1480, 7), s.tcpFrame(r, p, ownAddr, 60, 0)
	super := s.tcpFrame(r, p, ownAddr, 4*segment, 0)
	frames := func(n int, frame []byte) [][]byte { return slices.Repeat([][]byte{frame}, n) }
	taken := func(what string, all []received) {
		t.Helper()
		for _, r := range all {
			if !r.chosen() {
				t.Fatalf("%s: left to the engine: verdict %d", what, r.verdict)
			}
		}
	}
	taken("cut by a kernel", s.receiveAll(t, s.ether, frames(1000, numbered)...))
	taken("superpackets", s.receiveMerged(t, s.ether, segment, frames(1000, super)...))
	taken("short", s.receiveAll(t, s.ether, short))
	// On another processor a train begins anew, and if this one is slow.
	labtest.WaitFor(t, "a train, and what is after it, to be the engine's", func() bool {
		all := s.receiveAll(t, s.ether, append(frames(100, long), short)...)
		if first := all[0].verdict; first != redirect && first != next {
			t.Fatalf("verdict %d", first)
		}
		merged := s.receiveMerged(t, s.ether, segment, super)
		return all[99].verdict == next && all[100].verdict == next && !merged[0].chosen()
	})
}

// Where the kernel would take a superpacket that it forwards for a tunnel's, all of TCP that is
// forwarded is the engine's, so that it stays in order.
func TestForwarded(t *testing.T) {
	s := newSite(t)
	must(t, s.fast.SetAddresses([]netip.Addr{ownAddr}))
	p := s.plan()
	s.use(t, p)
	r := rand.New(rand.NewPCG(9, 10))
	for _, c := range []struct {
		to   netip.Addr
		want bool
	}{
		{ownAddr, true},
		{netip.MustParseAddr("10.9.9.9"), takesDecapFlag()},
	} {
		for _, size := range []int{0, 1000} {
			frame := s.tcpFrame(r, p, c.to, 40+max(60, 2*size), 7)
			if got := s.receiveMerged(t, s.ether, size, frame)[0].chosen(); got != c.want {
				t.Errorf("to %v, segments of %d bytes: delivered: %v, want %v", c.to, size, got, c.want)
			}
		}
	}
}
