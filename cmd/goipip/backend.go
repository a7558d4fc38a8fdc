//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"goipip/internal/daemon/control"
	"goipip/internal/iproute"
	"goipip/internal/tunnel"
)

// backend carries out the words of ip(8) by the processes of this network namespace.
type backend struct{ o *options }

var _ iproute.Backend = backend{}

// Add adds a tunnel to the daemon, which is started if there is none.
func (b backend) Add(_ context.Context, cfg tunnel.Config) error {
	_, err := control.AddTunnel(b.o.control, cfg, b.o.startInBackground)
	return err
}

// Change changes what the words of ip-tunnel(8) can say about a tunnel.
func (b backend) Change(_ context.Context, name string, cfg tunnel.Config) error {
	return b.first(name, func(c *control.Client) error {
		var l control.Listed
		if err := c.Call(control.MethodList, control.ListParams{}, &l); err != nil {
			return err
		}
		i := slices.IndexFunc(l.Tunnels, func(t control.Tunnel) bool { return t.Config.Name == name })
		if i < 0 {
			return control.ErrNotFound
		}
		next := l.Tunnels[i].Config
		if next.Local != cfg.Local {
			next.LocalDevice = "" // the words are addresses
		}
		if next.Remote != cfg.Remote {
			next.RemoteName, next.ResolveInterval = "", 0
		}
		next.Local, next.Remote, next.Device, next.Mark = cfg.Local, cfg.Remote, cfg.Device, cfg.Mark
		next.TTL, next.TOS, next.InheritTOS = cfg.TTL, cfg.TOS, cfg.InheritTOS
		next.NoPMTUDisc = cfg.NoPMTUDisc // and never the mode (ip_tunnel_update)
		return c.Call(control.MethodChange, control.TunnelParams{Name: name, Tunnel: next}, nil)
	})
}

// Delete removes a tunnel and its link.
func (b backend) Delete(_ context.Context, name string) error {
	return b.first(name, func(c *control.Client) error {
		return c.Call(control.MethodDelete, control.NameParams{Name: name}, nil)
	})
}

// List returns the tunnels of this network namespace by the indexes of their links.
func (b backend) List(_ context.Context, counters bool) ([]iproute.Tunnel, error) {
	var found []control.Tunnel
	err := b.each(func(c *control.Client) error {
		var l control.Listed
		err := c.Call(control.MethodList, control.ListParams{Counters: counters}, &l)
		found = append(found, l.Tunnels...)
		return err
	})
	slices.SortFunc(found, func(a, b control.Tunnel) int { return cmp.Compare(a.Index, b.Index) })
	var list []iproute.Tunnel
	for _, t := range found {
		list = append(list, iproute.Tunnel{Config: t.Config, Counters: t.Counters})
	}
	return list, err
}

// first calls f with the processes of this network namespace, until one knows the tunnel.
func (b backend) first(name string, f func(*control.Client) error) error {
	found := false
	err := b.each(func(c *control.Client) error {
		if found {
			return nil
		}
		err := f(c)
		if errors.Is(err, control.ErrNotFound) {
			return nil
		}
		found = true
		return err
	})
	if err == nil && !found {
		return fmt.Errorf("tunnel %q: %w", name, control.ErrNotFound)
	}
	return err
}

// each calls f with each process of this network namespace. One that ends meanwhile has no
// tunnels.
func (b backend) each(f func(*control.Client) error) error {
	clients, err := control.DialAll(b.o.control)
	errs := []error{err}
	for _, c := range clients {
		if err := f(c); !errors.Is(err, control.ErrEnding) {
			errs = append(errs, err)
		}
		c.Close()
	}
	return errors.Join(errs...)
}

// find returns the status of a tunnel, and a client of its process, which the caller closes.
func (b backend) find(name string) (*control.Client, control.TunnelStatus, error) {
	clients, err := control.DialAll(b.o.control)
	errs := []error{err}
	var found *control.Client
	var status control.Status
	for _, c := range clients {
		if found == nil {
			err := c.Call(control.MethodStatus, control.NameParams{Name: name}, &status)
			switch {
			case err == nil:
				found = c
				continue
			case !errors.Is(err, control.ErrNotFound) && !errors.Is(err, control.ErrEnding):
				errs = append(errs, err)
			}
		}
		c.Close()
	}
	if found != nil {
		return found, status.Tunnels[0], nil
	}
	if err := errors.Join(errs...); err != nil {
		return nil, control.TunnelStatus{}, err
	}
	return nil, control.TunnelStatus{}, fmt.Errorf("tunnel %q: %w", name, control.ErrNotFound)
}
