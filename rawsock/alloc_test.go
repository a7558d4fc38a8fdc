package rawsock_test

import (
	"errors"
	"testing"

	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// What runs for each packet allocates nothing. Each run sends a batch and
// receives it, and reports whether all of it arrived: a function that does nothing
// allocates nothing either.
func TestAllocs(t *testing.T) {
	for _, path := range paths(t) {
		t.Run(path.name, func(t *testing.T) {
			checkAllocs(t, path, nil)
		})
		if path.name == "veth" {
			t.Run("hop", func(t *testing.T) { checkAllocs(t, path, hopTo(t, path.from, path.to, "eth0")) })
		}
	}
}

func checkAllocs(t *testing.T, path path, hop *rawsock.Hop) {
	refused := 0
	s := &sender{cfg: path.cfg, to: new(rawsock.Target)}
	must(t, path.from.Do(func() (err error) {
		s.Sender, err = rawsock.NewSender(path.cfg.Local, func(int, stats.Reason) { refused++ })
		return errors.Join(err, s.EnableHops())
	}))
	defer s.Close()
	s.setHop(hop)
	r := newConnected(t, path.to, reverse(path.cfg))

	var headers [rawsock.BatchSize]packet.IPv4
	payload := make([]byte, 1400)
	for i := range headers {
		headers[i] = outer(path.cfg, len(payload))
	}
	tooBig := make([]byte, packet.IPv4MaxLen)
	sent, received := uint16(0), uint16(0) // the numbers of packets
	send := func(n, refusals int) bool {
		for _, h := range headers[:n] {
			sent++
			h.SetID(sent)
			h.UpdateChecksum() // which a raw socket would do
			s.Add(h, payload)
		}
		for range refusals {
			s.Add(headers[0], tooBig)
		}
		refused = 0
		return s.Flush() == nil && refused == refusals
	}
	receive := func() bool {
		for received != sent {
			packets, err := r.Receive()
			if err != nil || len(packets) == 0 {
				return false
			}
			for _, p := range packets {
				received++
				if p.ID() != received {
					return false
				}
			}
		}
		return true
	}

	tests := []struct {
		name string
		work func() bool
	}{
		{"a packet", func() bool { return send(1, 0) && receive() }},
		{"a full batch", func() bool { return send(rawsock.BatchSize, 0) && receive() }},
		{"with refusals", func() bool { return send(10, 3) && receive() }},
		{"nothing", func() bool { return s.Flush() == nil && s.Len() == 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			failed := false
			allocs := testing.AllocsPerRun(100, func() { failed = failed || !tt.work() })
			if failed {
				t.Error("a run did not do its work")
			}
			if allocs != 0 {
				t.Errorf("%v allocations a run, want 0", allocs)
			}
		})
	}
}
