package rawsock_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// outlet has a sender's packets from left to right leave by one kind of socket.
type outlet func(t *testing.T, s *sender, left, right *netlab.Host)

var outlets = map[string]outlet{
	"raw": func(*testing.T, *sender, *netlab.Host, *netlab.Host) {},
	"packet": func(t *testing.T, s *sender, left, right *netlab.Host) {
		t.Helper()
		must(t, left.Do(s.EnableHops))
		s.setHop(hopTo(t, left, right, "eth0"))
	},
}

// hopTo is the hop from one host to another, by devices of a name.
func hopTo(t testing.TB, from, to *netlab.Host, device string) *rawsock.Hop {
	t.Helper()
	near, err := from.Netlink().LinkByName(device)
	must(t, err)
	far, err := to.Netlink().LinkByName(device)
	must(t, err)
	return &rawsock.Hop{Device: near.Attrs().Index, Addr: [6]byte(far.Attrs().HardwareAddr)}
}

// What arrives by a hop is, byte for byte, what arrives by a raw socket.
func TestHop_ByteForByte(t *testing.T) {
	left, right := newPair(t)
	g := startReceiving(newConnected(t, right, rightEnd))
	wire, err := right.Capture("eth0")
	must(t, err)
	raw, hop := newSender(t, left, leftEnd), newSender(t, left, leftEnd)
	outlets["packet"](t, hop, left, right)
	rng := rand.New(rand.NewPCG(1, 3))
	lengths := []int{20, 21, 40, 45, 46, 47, 576, 1499, 1500}
	for range 50 {
		lengths = append(lengths, 20+rng.IntN(1481))
	}
	sent := 0
	for i, n := range lengths {
		p := outer(leftEnd, n-packet.IPv4HdrLen)
		p.SetID(uint16(1 + i)) // the kernel would fill in 0, by a raw socket
		p.SetTOS(uint8(rng.Uint32()))
		p.SetTTL(uint8(1 + rng.IntN(255)))
		p.SetDF(rng.IntN(2) == 0)
		p.UpdateChecksum()
		p = append(p, randomBytes(rng, n-packet.IPv4HdrLen)...)
		for _, border := range []int{packet.IPv4HdrLen, min(n, 2*packet.IPv4HdrLen), n} {
			for name, s := range map[string]*sender{"raw": raw, "packet": hop} {
				s.Add(p[:border], p[border:])
				must(t, s.Flush())
				if len(s.refusals) > 0 {
					t.Fatalf("%s, %d bytes: refused: %+v", name, n, s.refusals)
				}
				sent++
				if got := g.next(t); !bytes.Equal(got, p) {
					t.Fatalf("%s, %d bytes, payload from byte %d on: received %d bytes, or others", name, n, border, len(got))
				}
			}
		}
	}
	// Nothing was added, such as padding.
	labtest.WaitFor(t, "all packets to be captured", func() bool { return len(wire.Packets()) >= sent })
	for _, c := range wire.Packets() {
		if p := packet.IPv4(c.Data); p.TotalLength() != len(p) {
			t.Errorf("a packet of %d bytes has %d on the wire", p.TotalLength(), len(p))
		}
	}
}

// T3, T12: refusals by the packet socket have the reasons of the raw socket.
func TestHop_Refused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, left *netlab.Host)
		length  int // of the packets
		want    stats.Reason
	}{
		"one byte too long":    {length: 1501, want: stats.TooBig},
		"as with a VLAN's tag": {length: 1504, want: stats.TooBig}, // packet_extra_vlan_len_allowed
		"and one byte more":    {length: 1505, want: stats.TooBig},
		"as long as can be":    {length: packet.IPv4MaxLen, want: stats.TooBig},
		"shorter device":       {func(t *testing.T, left *netlab.Host) { must(t, left.SetMTU("eth0", 576)) }, 577, stats.TooBig},
		"device down":          {setDown, 100, stats.NoRoute},
		"device deleted":       {deleteLink, 100, stats.NoRoute},
	} {
		t.Run(name, func(t *testing.T) {
			left, right := newPair(t)
			s := newSender(t, left, leftEnd)
			outlets["packet"](t, s, left, right)
			if c.prepare != nil {
				c.prepare(t, left)
			}
			for range 3 {
				s.Add(outer(leftEnd, c.length-packet.IPv4HdrLen), make([]byte, c.length-packet.IPv4HdrLen))
			}
			must(t, s.Flush())
			if diff := cmp.Diff([]refusal{{0, c.want}, {1, c.want}, {2, c.want}}, s.refusals); diff != "" {
				t.Errorf("refusals (-want +got):\n%s", diff)
			}
		})
	}
}

// However often another goroutine changes the hop, each packet arrives once.
func TestHop_Switch(t *testing.T) {
	lab := labtest.New(t)
	left, right := newPairIn(t, lab)
	must(t, lab.Veth(left, "eth1", right, "eth1"))
	g := startReceiving(newConnected(t, right, rightEnd))
	s := newSender(t, left, leftEnd)
	must(t, left.Do(s.EnableHops))
	hops := []*rawsock.Hop{nil, hopTo(t, left, right, "eth0"), hopTo(t, left, right, "eth1")}

	const packets = 3000
	stop := make(chan struct{})
	var setting sync.WaitGroup
	setting.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				s.setHop(hops[i%len(hops)])
			}
		}
	})
	rng := rand.New(rand.NewPCG(4, 4))
	missing := map[string]bool{}
	for n := 0; n < packets; {
		for range min(1+rng.IntN(rawsock.BatchSize), packets-n) {
			p := fmt.Sprint("packet ", n)
			s.Add(outer(leftEnd, len(p)), []byte(p))
			missing[p] = true
			n++
		}
		must(t, s.Flush())
	}
	close(stop)
	setting.Wait()
	if len(s.refusals) > 0 {
		t.Fatalf("refused: %+v", s.refusals)
	}
	for len(missing) > 0 {
		p := string(g.next(t).Payload())
		if !missing[p] {
			t.Fatalf("received %q again", p)
		}
		delete(missing, p)
	}
	// The Route that was set last is the one that holds.
	for i, hop := range hops {
		device := []string{"eth0", "eth0", "eth1"}[i]
		wire, err := right.Capture(device)
		must(t, err)
		s.setHop(hop)
		payload := fmt.Sprint("the last to ", i)
		s.mustSend(t, payload)
		g.check(t, payload)
		_, err = wire.Wait(labtest.Context(t), func(c netlab.Captured) bool {
			return string(packet.IPv4(c.Data).Payload()) == payload
		})
		must(t, err)
	}
}
