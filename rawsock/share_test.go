package rawsock_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// The filter that divides a tunnel's packets, in the virtual machine of
// golang.org/x/net/bpf and in the kernel.

// shares are the filters of n receivers.
type shares []*bpf.VM

func newShares(t testing.TB, n int) shares {
	t.Helper()
	var vms shares
	for i := range n {
		vm, err := bpf.NewVM(rawsock.ShareFilter(uint32(i), uint32(n)))
		must(t, err)
		vms = append(vms, vm)
	}
	return vms
}

// of returns the one share that takes p, whole.
func (s shares) of(t testing.TB, p packet.IPv4) int {
	t.Helper()
	var takers []int
	for i, vm := range s {
		n, err := vm.Run(p)
		must(t, err)
		if n >= len(p) {
			takers = append(takers, i)
		} else if n > 0 {
			t.Fatalf("share %d of %d cuts % x to %d bytes", i, len(s), []byte(p), n)
		}
	}
	if len(takers) != 1 {
		t.Fatalf("shares %v of %d take % x, want one", takers, len(s), []byte(p))
	}
	return takers[0]
}

// flow is what the packets of one connection have in common.
type flow struct {
	proto    uint8
	src, dst [4]byte
	ports    [4]byte // of source and destination, as they stand
}

func randomFlow(rng *rand.Rand) flow {
	protos := []uint8{packet.ProtoTCP, packet.ProtoUDP}
	return flow{
		proto: protos[rng.IntN(len(protos))],
		src:   [4]byte(randomBytes(rng, 4)),
		dst:   [4]byte(randomBytes(rng, 4)),
		ports: [4]byte(randomBytes(rng, 4)),
	}
}

// packet returns a packet of the flow that is otherwise as random as can be.
func (f flow) packet(rng *rand.Rand) packet.IPv4 {
	hdrLen := 4 * (5 + rng.IntN(11))
	p := make(packet.IPv4, hdrLen, hdrLen+4+1300)
	copy(p, randomBytes(rng, hdrLen))
	p[0] = 4<<4 | byte(hdrLen/4)
	p[6] &= 0xc0 // no fragment
	p[7] = 0
	p.SetProtocol(f.proto)
	p.SetSource(f.src)
	p.SetDestination(f.dst)
	p = append(p, f.ports[:]...)
	p = append(p, randomBytes(rng, rng.IntN(cap(p)-len(p)))...)
	p.SetTotalLength(len(p))
	return p
}

// wrap puts an inner packet, or what passes for one, behind an outer header,
// which half of the time has options: no-operations, which the kernel lets pass.
func wrap(rng *rand.Rand, cfg config, inner []byte) packet.IPv4 {
	p := outer(cfg, len(inner))
	if rng.IntN(2) == 0 {
		options := 4 * (1 + rng.IntN(10))
		p = append(p, slices.Repeat([]byte{1}, options)...)
		p[0] = 4<<4 | byte(len(p)/4)
	}
	p.SetTotalLength(len(p) + len(inner))
	p.UpdateChecksum()
	return append(p, inner...)
}

// strange returns an inner packet that has something unusual about it, and its
// kind.
func strange(rng *rand.Rand) (string, packet.IPv4) {
	p := randomFlow(rng).packet(rng)
	switch rng.IntN(8) {
	case 0:
		p.SetProtocol(packet.ProtoICMP)
		return "ICMP", p
	case 1:
		p.SetProtocol(uint8(rng.Uint32()))
		return "any protocol", p
	case 2:
		p[6], p[7] = byte(rng.Uint32()), byte(rng.Uint32())
		return "fragment", p
	case 3:
		p[0] = byte(rng.Uint32())
		return "any version and IHL", p
	case 4:
		return "shorter than a header", p[:rng.IntN(packet.IPv4HdrLen)]
	case 5:
		return "shorter than its ports", p[:packet.IPv4HdrLen+rng.IntN(p.HdrLen()+4-packet.IPv4HdrLen)]
	case 6:
		p.SetTotalLength(int(uint16(rng.Uint32())))
		return "any total length", p
	}
	return "noise", randomBytes(rng, rng.IntN(100))
}

// Every packet is taken by one receiver, whatever is in it.
func TestShare_Once(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 7, 255} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			s := newShares(t, n)
			kinds := map[string]int{}
			for range 20000 / (n + 4) {
				kind, p := strange(rng)
				kinds[kind]++
				share := s.of(t, wrap(rng, leftEnd, p))
				if len(p) < packet.IPv4HdrLen && share != 0 {
					t.Errorf("share %d takes %d inner bytes, want share 0", share, len(p))
				}
			}
			if len(kinds) != 8 {
				t.Errorf("not all kinds of packets: %v", kinds)
			}
		})
	}
}

// The packets of a flow are taken by one receiver, whatever else is in them.
func TestShare_FlowsStayTogether(t *testing.T) {
	for _, n := range []int{2, 3, 4, 255} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(2, uint64(n)))
			s := newShares(t, n)
			for range 1000 / (n + 4) {
				f := randomFlow(rng)
				want := s.of(t, wrap(rng, leftEnd, f.packet(rng)))
				for range 20 {
					p := wrap(rng, leftEnd, f.packet(rng))
					if got := s.of(t, p); got != want {
						t.Fatalf("share %d takes % x, and others of its flow go to %d", got, []byte(p), want)
					}
				}
			}
		})
	}
}

// All fragments of a packet are taken by one receiver: only the first has ports.
func TestShare_FragmentsStayTogether(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	s := newShares(t, 4)
	for range 500 {
		f := randomFlow(rng)
		first, last := f.packet(rng), f.packet(rng)
		first[6] |= 0x20 // MF
		last[7] = byte(1 + rng.IntN(255))
		copy(last[last.HdrLen():], randomBytes(rng, 4))
		want, got := s.of(t, wrap(rng, leftEnd, first)), s.of(t, wrap(rng, leftEnd, last))
		if got != want {
			t.Fatalf("the first fragment goes to share %d, another one to %d", want, got)
		}
	}
}

// The usual series of flows do not all meet in one receiver.
func TestShare_Spread(t *testing.T) {
	const flows = 256
	tests := []struct {
		name string
		flow func(i int) flow
	}{
		{"source ports in a row", func(i int) flow {
			return flow{packet.ProtoTCP, [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2}, [4]byte{0x80, byte(i), 0, 80}}
		}},
		{"every other source port, as of connect(2)", func(i int) flow {
			return flow{packet.ProtoTCP, [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2}, [4]byte{0x80 + byte(i>>7), byte(2 * i), 0x14, 0x51}}
		}},
		{"destination ports in a row", func(i int) flow {
			return flow{packet.ProtoUDP, [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2}, [4]byte{0x80, 0, 0x40, byte(i)}}
		}},
		{"hosts of a subnet to one server", func(i int) flow {
			return flow{packet.ProtoTCP, [4]byte{10, 0, 0, byte(i)}, [4]byte{10, 1, 0, 2}, [4]byte{0x80, 0, 0, 80}}
		}},
		{"one client to a subnet", func(i int) flow {
			return flow{packet.ProtoTCP, [4]byte{10, 1, 0, 2}, [4]byte{10, 0, 0, byte(i)}, [4]byte{0x80, 0, 0, 80}}
		}},
		{"pings to a subnet", func(i int) flow {
			return flow{packet.ProtoICMP, [4]byte{10, 1, 0, 2}, [4]byte{10, 0, 0, byte(i)}, [4]byte{8, 0, 0, 0}}
		}},
	}
	for _, tt := range tests {
		for _, n := range []int{2, 3, 4, 8} {
			t.Run(fmt.Sprintf("%s,%d", tt.name, n), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(5, 6))
				s := newShares(t, n)
				counts := make([]int, n)
				for i := range flows {
					counts[s.of(t, wrap(rng, leftEnd, tt.flow(i).packet(rng)))]++
				}
				if fair := flows / n; slices.Min(counts) < fair/2 || slices.Max(counts) > 2*fair {
					t.Errorf("%d flows become %v, want about %d for each", flows, counts, fair)
				}
			})
		}
	}
}

// The kernel's filters do as the virtual machine's: each packet arrives at one
// receiver of a tunnel, and where the others of its flow do.
func TestShare_Kernel(t *testing.T) {
	for _, n := range []int{2, 3, 4} {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,connected=%t", n, connected), func(t *testing.T) { shareKernel(t, n, connected) })
		}
	}
}

func shareKernel(t *testing.T, n int, connected bool) {
	left, right := newPair(t)
	sender := newSender(t, left, leftEnd)
	var receivers []*receiving
	for i := range n {
		r := newShareReceiver(t, right, rightEnd, i, n)
		if connected {
			must(t, r.Connect())
		}
		receivers = append(receivers, startReceiving(r))
	}
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	vms := newShares(t, n)

	// A packet is known by its ID.
	want := make([][]uint16, n)
	last := uint16(0)
	send := func(inner []byte) (share int) {
		p := wrap(rng, leftEnd, inner)
		last++
		p.SetID(last)
		sender.Add(p, nil)
		must(t, sender.Flush())
		share = vms.of(t, p)
		want[share] = append(want[share], last)
		return share
	}
	for range 300 {
		_, p := strange(rng)
		send(p)
		f := randomFlow(rng)
		send(f.packet(rng))
		send(f.packet(rng))
	}
	// Packets by which each receiver knows that it has all.
	for ended := map[int]bool{}; len(ended) < n; {
		ended[send(randomFlow(rng).packet(rng))] = true
	}
	if len(sender.refusals) > 0 {
		t.Fatalf("refused: %+v", sender.refusals)
	}
	for i, r := range receivers {
		var got []uint16
		for range want[i] {
			got = append(got, r.next(t).ID())
		}
		if !slices.Equal(got, want[i]) {
			t.Errorf("share %d: received %v, want %v", i, got, want[i])
		}
	}
}
