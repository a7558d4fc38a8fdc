package engine

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// claim keeps the pair of addresses to this tunnel (O7): two tunnels between the
// same ends would each deliver every packet. It is an abstract Unix socket, a name
// that exists once in a network namespace and goes with its process (unix(7)).
func claim(cfg Config) (*net.UnixConn, error) {
	name := fmt.Sprintf("@goipip local %v remote %v", cfg.Local, cfg.Remote)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("tunnel from %v to %v: %w: another goipip here has the same two ends (ip link delete)",
			cfg.Local, cfg.Remote, syscall.EEXIST)
	}
	if err != nil {
		return nil, fmt.Errorf("claim the tunnel from %v to %v: %w", cfg.Local, cfg.Remote, err)
	}
	return conn, nil
}
