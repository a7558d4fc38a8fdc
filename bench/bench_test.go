package bench

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"goipip/internal/netlab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// share is the part of a piece that a test moves: one in so many.
const share = 64

// TestLoadsOverPeers proves that each load gets through each peer, and counts
// what did.
func TestLoadsOverPeers(t *testing.T) {
	for _, p := range slices.Concat(peers, []peer{inProcess}) {
		t.Run(p.name, func(t *testing.T) {
			n := connect(t, p)
			for _, l := range loads {
				t.Run(l.name, func(t *testing.T) { moveTwice(t, l, n) })
			}
		})
	}
}

// moveTwice moves two pieces, because nothing of the first may count in the
// second.
func moveTwice(t *testing.T, l load, n *network) {
	move := l.open(t, n.a, n.b)
	size := l.size / share
	for range 2 {
		got, err := move(size, time.Now().Add(pieceTimeout))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case got.bytes == size, len(got.rtts) == size: // streams; round trips
		case len(got.rates) == 1 && len(got.floods) == 1 && got.floods[0] > 0: // a search
		default:
			t.Errorf("moved %+v, want %d", got, size)
		}
	}
}

// TestLoadsFailWithoutFarEnd takes the far end away, in silence: what moves
// nothing is an error, and does not hang.
func TestLoadsFailWithoutFarEnd(t *testing.T) {
	for _, l := range loads {
		t.Run(l.name, func(t *testing.T) {
			n := connect(t, peers[0])
			move := l.open(t, n.a, n.b)
			if err := n.b.host.SetDown(cable); err != nil {
				t.Fatal(err)
			}
			got, err := move(l.size, time.Now().Add(200*time.Millisecond))
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("moved %+v, error %v, want %v", got, err, os.ErrDeadlineExceeded)
			}
		})
	}
}
