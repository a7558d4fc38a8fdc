//go:build linux

package main

import (
	"context"

	"goipip/internal/daemon/control"
)

// statuses asks the goipip processes of this network namespace for their statuses. ctx ends
// the wait for them.
func (o *options) statuses(ctx context.Context) ([]control.Status, error) {
	type answer struct {
		statuses []control.Status
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		a.err = backend{o}.each(func(c *control.Client) error {
			var s control.Status
			err := c.Call(control.MethodStatus, control.NameParams{}, &s)
			if err == nil {
				a.statuses = append(a.statuses, s)
			}
			return err
		})
		answered <- a
	}()
	select {
	case a := <-answered:
		return a.statuses, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
