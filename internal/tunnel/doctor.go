package tunnel

import (
	"log/slog"

	"goipip/internal/underlay"
	"goipip/rawsock"
	"goipip/tun"
)

// Finding is the result of one of Examine's checks.
type Finding struct {
	Need string
	Err  error // what is wrong and what to do about it; nil if nothing is
}

// Examine checks whether this host can have a tunnel, in the network namespace of
// the calling thread. It makes a link and a socket for that, which are gone when it
// returns.
func Examine() []Finding {
	return []Finding{
		{"a TUN device", examineTUN()},
		{"a raw socket", examineSocket()},
		{"nothing else that answers ipip packets", examineConflict()},
	}
}

func examineTUN() error {
	h, err := tun.NewHost()
	if err != nil {
		return err
	}
	defer h.Close()
	d, err := h.Open(tun.Config{Queues: 1, Offload: true})
	if err != nil {
		return err
	}
	return d.Close()
}

func examineSocket() error {
	r, err := rawsock.NewReceiver(0, 1)
	if err != nil {
		return err
	}
	return r.Close()
}

func examineConflict() error {
	w, err := underlay.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Conflict()
}
