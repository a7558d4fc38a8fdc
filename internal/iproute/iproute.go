package iproute

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"

	"goipip/internal/tunnel"
)

// Backend has the tunnels of this network namespace. Errors for which the kernel has an
// errno wrap it.
type Backend interface {
	// Add makes a tunnel. For %d in its name it takes the first number that is free.
	Add(context.Context, tunnel.Config) error
	// Change makes what the words of ip can say about the tunnel called name as in the
	// Config, and leaves its mode and all other settings as they are.
	Change(ctx context.Context, name string, cfg tunnel.Config) error
	// Delete removes a tunnel.
	Delete(ctx context.Context, name string) error
	// List returns the tunnels by the indexes of their links.
	List(ctx context.Context, counters bool) ([]Tunnel, error)
}

// Tunnel is a tunnel in a list.
type Tunnel struct {
	Config tunnel.Config // its Name and Device are present names
	// Counters are those of the link (struct rtnl_link_stats64), by name.
	Counters map[string]uint64
}

// Run carries the command out, and returns the exit status of ip. Errors with the status 1
// that ip has no words for are returned as err instead, and so is what standard output
// refuses.
func (c Command) Run(ctx context.Context, b Backend, stdout, stderr io.Writer) (status int, err error) {
	r := run{Options: c.Options, ctx: ctx, backend: b, out: stdout}
	err = c.err
	if err == nil && c.object == "tunnel" {
		err = r.tunnel(c.words)
	} else if err == nil {
		err = r.link(c.words)
	}
	var e *exit
	if errors.As(err, &e) {
		_, err = io.WriteString(stderr, e.text)
		return e.status, err
	}
	return 0, err
}

// run is a Command that is carried out.
type run struct {
	Options
	ctx     context.Context
	backend Backend
	out     io.Writer
}

// find returns the tunnel called name. Where there is none, the error is that of the ioctl
// of ip's tunnels.
func (r *run) find(name string) (Tunnel, error) {
	tunnels, err := r.backend.List(r.ctx, false)
	if err != nil {
		return Tunnel{}, err
	}
	for _, t := range tunnels {
		if t.Config.Name == name {
			return t, nil
		}
	}
	return Tunnel{}, missing(name)
}

// missing is the kernel's error about a link that is no tunnel: there is none of that name,
// or it is of another kind (dev_ifsioc in net/core/dev_ioctl.c).
func missing(name string) error {
	if linkExists(name) {
		return syscall.EOPNOTSUPP
	}
	return syscall.ENODEV
}

// linkExists reports whether this network namespace has a link called name.
func linkExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}
