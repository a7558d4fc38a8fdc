package fastpath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/tun"
)

// Each property is tried with so many plans, and so many packets by each.
const (
	plansTried   = 250
	packetsTried = 60
)

// What leaves by the link goes out by itself if and only if mustSend says so, and then has
// the outer header that the engine would give it. Everything else is left as it is.
func TestEligibility_T1_T5_T6_T9_T10_T11_G3_G4(t *testing.T) {
	s := newSite(t)
	r := rand.New(rand.NewPCG(1, 2))
	var took, left int
	for range plansTried {
		plan := randomPlan(r, s.plan())
		s.use(t, plan)
		engine, err := encap.NewEncapsulator(plan.Outer, encap.NewIDs(), nil)
		must(t, err)
		for range packetsTried {
			inner, protocol := randomInner(r, plan)
			frame, rest := s.send(t, tun.Packet{Bytes: inner}, protocol)
			taken := frame.Bytes != nil
			if want := mustSend(plan, inner, protocol); taken != want {
				t.Fatalf("taken: %v, want %v: %+v, protocol %#x, %d bytes: %x", taken, want, plan, protocol, len(inner), head(inner))
			}
			if !taken {
				left++
				if !bytes.Equal(rest.Bytes, inner) {
					t.Fatalf("left to the engine as\n%x, was\n%x", head(rest.Bytes), head(inner))
				}
				continue
			}
			took++
			want := make([]byte, packet.IPv4HdrLen)
			if why := engine.Encap(want, inner); why != stats.Deliver {
				t.Fatalf("taken, but the engine says %v: %+v, %x", why, plan, head(inner))
			}
			if outer := packet.IPv4(want); !outer.DF() || outer.TotalLength() > plan.MTU {
				t.Fatalf("taken, but needs an ID or fragments: %+v, %x", plan, head(inner))
			}
			if want = append(want, inner...); !bytes.Equal(frame.Bytes[etherLen:], want) {
				t.Fatalf("by %+v, sent\n%x, want\n%x", plan, head(frame.Bytes[etherLen:]), head(want))
			}
		}
	}
	bothWays(t, took, left)
}

// mustSend says which packets the program is to take, from docs/rules.md alone.
func mustSend(plan Plan, inner packet.IPv4, protocol uint16) bool {
	if protocol != unix.ETH_P_IP || !ordinary(inner, len(inner)) || inner.Protocol() == packet.ProtoIPIP || len(inner) > longestSent {
		return false
	}
	df := !plan.Outer.NoPMTUDisc || inner.DF()
	fits := len(inner)+packet.IPv4HdrLen <= plan.MTU
	if plan.Inspect && inspected(inner) {
		return false
	}
	return df && fits && inner.TTL() != 0 && inner.Source() != plan.Outer.Remote.As4()
}

// longestSent is the length in bytes up to which the kernel's helpers take any packet but
// a superpacket, with all headers.
const longestSent = 15000

// ordinary reports whether p, of a packet of n bytes, has a header without options, and is no
// fragment.
func ordinary(p packet.IPv4, n int) bool {
	return len(p) >= packet.IPv4HdrLen && p.Version() == 4 && p.HdrLen() == packet.IPv4HdrLen && p.TotalLength() == n && !p.IsFragment()
}

// inspected reports whether an ordinary packet is a TCP SYN, or may be.
func inspected(p packet.IPv4) bool {
	if p.Protocol() != packet.ProtoTCP {
		return false
	}
	const flags = 13
	tcp := p.Payload()
	return len(tcp) <= flags || tcp[flags]&packet.TCPSyn != 0
}

// bothWays fails a property that was hardly tried one way.
func bothWays(t *testing.T, took, left int) {
	t.Helper()
	t.Logf("took %d packets, left %d", took, left)
	if few := (took + left) / 10; took < few || left < few {
		t.Errorf("took %d packets and left %d: fewer than a tenth show nothing", took, left)
	}
}

// randomPlan changes a Plan at random, but its device.
func randomPlan(r *rand.Rand, p Plan) Plan {
	p.Outer.Local, p.Outer.Remote = randomAddr(r), randomAddr(r)
	p.Outer.TOS = uint8(r.Uint32())
	p.Outer.InheritTOS = chance(r, 0.5)
	p.Outer.NoPMTUDisc = chance(r, 0.3)
	p.Outer.TTL = uint8(r.Uint32())
	if chance(r, 0.3) {
		p.Outer.TTL = 0
	}
	p.Mark = r.Uint32()
	switch r.IntN(4) {
	case 0:
		p.MTU = 68 + r.IntN(65535-68+1)
	case 1:
		p.MTU = 68 + r.IntN(3000)
	default:
		p.MTU = 1500
	}
	p.SendOnly = chance(r, 0.1)
	p.Inspect = chance(r, 0.5)
	return p
}

// randomInner returns a packet for a tunnel, and which protocol it is sent as.
func randomInner(r *rand.Rand, plan Plan) (p packet.IPv4, protocol uint16) {
	fits := plan.MTU - packet.IPv4HdrLen
	var n int
	switch r.IntN(20) {
	case 0:
		n = packet.IPv4HdrLen
	case 1, 2:
		n = fits
	case 3:
		n = fits + 1
	case 4:
		n = r.IntN(2 * fits)
	case 5:
		n = longestSent + r.IntN(3) - 1
	case 6:
		n = 16000 + r.IntN(100) // see longestSent
	case 7:
		n = 65535 - packet.IPv4HdrLen + r.IntN(packet.IPv4HdrLen+1)
	default:
		n = r.IntN(min(fits, 2000))
	}
	p = randomPacket(r, min(max(n, packet.IPv4HdrLen), packet.IPv4MaxLen))
	protocol = unix.ETH_P_IP
	for len(p) >= packet.IPv4HdrLen && chance(r, 0.3) {
		switch r.IntN(10) {
		case 0, 1:
			p.SetSource(plan.Outer.Remote.As4())
			if chance(r, 0.5) {
				break
			}
			p.SetSource(plan.Outer.Local.As4())
			p.SetDestination(plan.Outer.Remote.As4())
		case 2:
			protocol = unix.ETH_P_IPV6
		case 3:
			p[10]++
		default:
			p = spoil(r, p)
		}
	}
	return p, protocol
}

// randomPacket returns a sound packet of n bytes.
func randomPacket(r *rand.Rand, n int) packet.IPv4 {
	p := make(packet.IPv4, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	id := p.ID()
	p.InitHeader()
	if chance(r, 0.5) {
		p.SetID(id)
	}
	p.SetTotalLength(n)
	p.SetTOS(uint8(r.Uint32()))
	p.SetDF(chance(r, 0.7))
	p.SetTTL(uint8(1 + r.IntN(255)))
	p.SetProtocol([]uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, 47, 255}[r.IntN(5)])
	p.SetSource(randomAddr(r).As4())
	p.SetDestination(randomAddr(r).As4())
	p.UpdateChecksum()
	return p
}

// spoil changes a packet so that the engine is to look at it, as a rule. The checksum stays
// right where that may be.
func spoil(r *rand.Rand, p packet.IPv4) packet.IPv4 {
	if len(p) < packet.IPv4HdrLen {
		return p
	}
	switch r.IntN(12) {
	case 0:
		p[0] = uint8(0x40 | r.IntN(16))
	case 1:
		p[0] = uint8(r.Uint32())
	case 2:
		p.SetTotalLength(len(p) - r.IntN(2) - 1)
	case 3:
		p.SetTotalLength(int(uint16(len(p) + 1 + r.IntN(100))))
	case 4:
		p.SetFragment(0, true)
	case 5:
		p.SetFragment(8<<r.IntN(13), chance(r, 0.5))
	case 6:
		p[6] |= 0x80 // reserved, and means nothing
	case 7:
		p.SetTTL(0)
	case 8:
		p.SetProtocol(packet.ProtoIPIP)
	case 9:
		return p[:1+r.IntN(packet.IPv4HdrLen)]
	case 10:
		p = append(p, make([]byte, min(1+r.IntN(46), packet.IPv4MaxLen-len(p)))...)
	case 11:
		p.SetDF(!p.DF())
	}
	if p.HasHeader() {
		p.UpdateChecksum()
	}
	return p
}

func randomAddr(r *rand.Rand) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Uint32())))
}

func chance(r *rand.Rand, p float64) bool { return r.Float64() < p }

// head returns as much of a packet as a message takes.
func head(b []byte) []byte { return b[:min(len(b), 60)] }
