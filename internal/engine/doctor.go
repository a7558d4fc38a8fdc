package engine

import (
	"fmt"
	"net/netip"

	"goipip/rawsock"
	"goipip/tun"
)

// Finding is what Examine found out about one need of a tunnel.
type Finding struct {
	Need string
	Err  error // what is wrong and what to do about it; nil if nothing is
}

// Examine looks whether this host can have a tunnel, in the network namespace of
// the calling thread. It makes a link and a socket for that, which are gone when it
// returns.
func Examine() []Finding {
	return []Finding{
		{"a TUN device", examineTUN()},
		{"a raw socket", examineSocket()},
		{"nothing else that answers ipip packets", examineCompany()},
	}
}

func examineTUN() error {
	d, err := tun.Open(tun.Config{Queues: 1, Offload: true})
	if err != nil {
		return err
	}
	return d.Close()
}

func examineSocket() error {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	r, err := rawsock.NewReceiver(rawsock.Config{Local: loopback, Remote: loopback}, 0, 1)
	if err != nil {
		return err
	}
	return r.Close()
}

func examineCompany() error {
	h, err := openHost(netip.Addr{})
	if err != nil {
		return err
	}
	defer h.close()
	if c := h.company(); c != "" {
		return fmt.Errorf("%s: %s", c, companyCure)
	}
	return nil
}
