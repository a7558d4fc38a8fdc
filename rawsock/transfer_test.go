package rawsock_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// loopback are the ends of a tunnel within one host, whose device takes packets
// of 64 KiB.
var loopback = config{
	Local:  netip.MustParseAddr("127.0.0.1"),
	Remote: netip.MustParseAddr("127.0.0.2"),
}

// reverse returns the other end's config.
func reverse(cfg config) config {
	return config{Local: cfg.Remote, Remote: cfg.Local}
}

// path is where packets go: from one host to one that may be the same.
type path struct {
	name     string
	cfg      config // the sending end's
	largest  int    // packet, in bytes
	from, to *netlab.Host
}

func paths(t *testing.T) []path {
	left, right := newPair(t)
	return []path{
		{"veth", leftEnd, 1500, left, right},
		{"lo", loopback, packet.IPv4MaxLen, left, left},
	}
}

// A packet arrives as it was sent, byte for byte, whatever its length and
// wherever the border between header and payload lies.
func TestTransfer_ByteForByte(t *testing.T) {
	for _, path := range paths(t) {
		t.Run(path.name, func(t *testing.T) {
			s := newSender(t, path.from, path.cfg)
			g := startReceiving(newConnected(t, path.to, reverse(path.cfg)))
			rng := rand.New(rand.NewPCG(1, 2))
			lengths := []int{
				packet.IPv4HdrLen, packet.IPv4HdrLen + 1, 2 * packet.IPv4HdrLen, 576, 1499, 1500,
				1501, 9000, packet.IPv4MaxLen - 1, packet.IPv4MaxLen,
			}
			for range 50 {
				lengths = append(lengths, packet.IPv4HdrLen+rng.IntN(path.largest-packet.IPv4HdrLen+1))
			}
			for i, n := range lengths {
				if n > path.largest {
					continue
				}
				p := outer(path.cfg, n-packet.IPv4HdrLen)
				p.SetID(uint16(1 + i)) // the kernel would fill in 0
				p.SetTOS(uint8(rng.Uint32()))
				p.UpdateChecksum()
				p = append(p, randomBytes(rng, n-packet.IPv4HdrLen)...)
				for _, border := range []int{packet.IPv4HdrLen, min(n, 2*packet.IPv4HdrLen), n} {
					s.Add(p[:border], p[border:])
					must(t, s.Flush())
					if len(s.refusals) > 0 {
						t.Fatalf("%d bytes: refused: %+v", n, s.refusals)
					}
					if got := g.next(t); !bytes.Equal(got, p) {
						t.Fatalf("%d bytes, payload from byte %d on: received %d bytes, or others", n, border, len(got))
					}
				}
			}
		})
	}
}

// T11: the kernel writes the length and the checksum, and an ID only where there
// is none and the packet may be fragmented (raw_send_hdrinc in net/ipv4/raw.c).
func TestT11_KernelFillsHeader(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	g := startReceiving(newConnected(t, right, rightEnd))
	send := func(id uint16, df bool) packet.IPv4 {
		p := make(packet.IPv4, packet.IPv4HdrLen)
		copy(p, outer(leftEnd, 0))
		p.SetTotalLength(0)
		p.SetID(id)
		p.SetDF(df)
		s.Add(p, []byte("data"))
		must(t, s.Flush())
		got := g.next(t)
		if !got.Valid() || got.TotalLength() != len(got) || string(got.Payload()) != "data" {
			t.Fatalf("received % x", []byte(got))
		}
		if packet.Sum(got[:packet.IPv4HdrLen], 0) != 0xffff || got.DF() != df {
			t.Errorf("header % x: checksum or DF wrong", []byte(got[:packet.IPv4HdrLen]))
		}
		return got
	}
	if id := send(0, true).ID(); id != 0 {
		t.Errorf("no ID, DF: ID %#x", id)
	}
	for _, df := range []bool{false, true} {
		if id := send(0x1234, df).ID(); id != 0x1234 {
			t.Errorf("DF %v: ID %#x, want that of the sender", df, id)
		}
	}
	if a, b := send(0, false).ID(), send(0, false).ID(); a == b {
		t.Errorf("no ID, no DF: twice %#x", a)
	}
}

// A batch of any length arrives whole and in order.
func TestTransfer_Batches(t *testing.T) {
	for _, path := range paths(t) {
		t.Run(path.name, func(t *testing.T) {
			s := newSender(t, path.from, path.cfg)
			r := newConnected(t, path.to, reverse(path.cfg))
			sent, received := 0, 0
			for _, n := range []int{0, 1, 2, rawsock.BatchSize - 1, rawsock.BatchSize, 1, 3*rawsock.BatchSize + 5} {
				for i := range n {
					payload := fmt.Sprintf("packet %d", sent)
					s.Add(outer(path.cfg, len(payload)), []byte(payload))
					sent++
					if s.Len() == rawsock.BatchSize || i == n-1 {
						if want := i%rawsock.BatchSize + 1; s.Len() != want {
							t.Fatalf("Len = %d, want %d", s.Len(), want)
						}
						must(t, s.Flush())
					}
				}
				must(t, s.Flush()) // of nothing
				if s.Len() != 0 || len(s.refusals) > 0 {
					t.Fatalf("Len = %d after Flush, refusals %+v", s.Len(), s.refusals)
				}
				for received < sent {
					packets, err := r.Receive()
					if err != nil {
						t.Fatal(err)
					}
					if len(packets) == 0 || len(packets) > rawsock.BatchSize {
						t.Fatalf("Receive returned %d packets", len(packets))
					}
					for _, p := range packets {
						if want := fmt.Sprintf("packet %d", received); string(p.Payload()) != want {
							t.Fatalf("received %q, want %q", p.Payload(), want)
						}
						received++
					}
				}
			}
		})
	}
}

// One Receive returns all that is there.
func TestReceive_Batch(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	r := newConnected(t, right, rightEnd)
	witness := startReceiving(newConnected(t, right, rightEnd))
	for _, n := range []int{1, 2, 63, 64, 65, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var payloads []string
			for i := range n {
				payloads = append(payloads, fmt.Sprint(i))
			}
			// The kernel gives each packet to both sockets before it takes the next.
			payloads = append(payloads, "end")
			for batch := range slices.Chunk(payloads, rawsock.BatchSize) {
				s.mustSend(t, batch...)
			}
			witness.check(t, payloads...)

			var got []string
			for len(got) == 0 || got[len(got)-1] != "end" {
				packets, err := r.Receive()
				if err != nil {
					t.Fatal(err)
				}
				if there := n - len(got); len(packets) < min(there, rawsock.BatchSize) {
					t.Errorf("Receive returned %d packets, and there were %d", len(packets), there)
				}
				for _, p := range packets {
					got = append(got, string(p.Payload()))
				}
			}
			if !slices.Equal(got, payloads) {
				t.Errorf("received %q", got)
			}
		})
	}
}

// Packets have memory of their own, which lasts until the next Receive.
func TestReceive_Memory(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	r := newConnected(t, right, rightEnd)
	witness := startReceiving(newConnected(t, right, rightEnd))
	s.mustSend(t, "one", "two", "three", "end")
	witness.check(t, "one", "two", "three", "end")
	packets, err := r.Receive()
	if err != nil || len(packets) < 3 {
		t.Fatalf("%d packets, %v", len(packets), err)
	}
	s.mustSend(t, "more", "end")
	witness.check(t, "more", "end")
	for i, want := range []string{"one", "two", "three"} {
		if got := string(packets[i].Payload()); got != want {
			t.Errorf("packet %d became %q", i, got)
		}
		clear(packets[i])
	}
}

// R1: what the sender's kernel, or a router, had to fragment, arrives whole.
func TestR1_FragmentsReassembled(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	g := startReceiving(newConnected(t, right, rightEnd))
	payload := randomBytes(rand.New(rand.NewPCG(3, 4)), 2000)
	const border = 1000 // a multiple of 8
	first, last := outer(leftEnd, border), outer(leftEnd, len(payload)-border)
	for _, p := range []packet.IPv4{first, last} {
		p.SetID(0x4711)
		p.SetDF(false)
	}
	first[6] |= 0x20 // MF
	last[7] = border / 8
	s.Add(last, payload[border:])
	s.Add(first, payload[:border])
	must(t, s.Flush())
	if got := g.next(t); got.IsFragment() || !bytes.Equal(got.Payload(), payload) {
		t.Errorf("received %d bytes of a fragmented packet with %d", len(got), len(payload))
	}
}

// Without a Receive, the socket holds what arrives in the meantime.
func TestReceiver_HoldsBurst(t *testing.T) {
	left, right := newPair(t)
	needBuffers(t, right)
	s := newSender(t, left, leftEnd)
	r := newConnected(t, right, rightEnd)
	const burst = 3000
	payload := make([]byte, 1480)
	for i := range burst {
		s.Add(outer(leftEnd, len(payload)), payload)
		if s.Len() == rawsock.BatchSize || i == burst-1 {
			must(t, s.Flush())
		}
	}
	s.mustSend(t, "end")
	g := startReceiving(r)
	for range burst {
		if p := g.next(t); len(p) != 1500 {
			t.Fatalf("received %d bytes: packets were lost", len(p))
		}
	}
	g.check(t, "end")
}
