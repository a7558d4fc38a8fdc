package tunnel

import (
	"log/slog"

	"goipip/internal/fastpath"
	"goipip/internal/underlay"
	"goipip/rawsock"
	"goipip/tun"
)

// Finding is the result of one of Examine's checks.
type Finding struct {
	Need string
	Err  error // what is wrong and what to do about it; nil if nothing is
	// Optional tells that tunnels work well without.
	Optional bool
}

// Examine checks whether this host can have a tunnel, in the network namespace of
// the calling thread. It makes a link and a socket for that, which are gone when it
// returns.
func Examine() []Finding {
	return []Finding{
		{Need: "a TUN device", Err: examineTUN()},
		{Need: "a raw socket", Err: examineSocket()},
		{Need: "nothing else that answers ipip packets", Err: examineConflict()},
		{Need: "a fast path in the kernel (--fast-path)", Err: examineFastPath(), Optional: true},
	}
}

func examineFastPath() error {
	h, err := fastpath.Open()
	if err != nil {
		return err
	}
	h.Close()
	return nil
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
