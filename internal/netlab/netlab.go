// Package netlab builds small networks of namespaces inside this machine, for tests, the demo and the benchmarks.
//
// A [Lab] owns [Host]s, each an anonymous network namespace, and all that was started in them. Nothing is left in
// /run/netns or on the machine's own interfaces, and nothing outlives the process, even when it is killed.
package netlab

import (
	"errors"
	"fmt"
	"sync"
)

// Lab owns hosts, and the processes and captures in them. Its methods and those of its hosts may be called from several
// goroutines at once, except for Close.
type Lab struct {
	mu      sync.Mutex
	closers []func() error
}

// New returns an empty lab. It tries to make a namespace first, so that an error names the permission that is missing
// and the cure.
func New() (*Lab, error) {
	trial, err := newHost(nil, "trial")
	if err != nil {
		return nil, err
	}
	return &Lab{}, trial.close()
}

// Host makes a network namespace whose only device is its loopback, up. New devices in it have IPv6 disabled, so that
// no router solicitation disturbs a capture; Sysctl("net.ipv6.conf.DEV.disable_ipv6", "0") enables it on one.
// The name is used in messages only.
func (l *Lab) Host(name string) (*Host, error) {
	h, err := newHost(l, name)
	if err != nil {
		return nil, err
	}
	l.onClose(h.close)
	return h, nil
}

// Close undoes what was made, the last first: it ends processes, captures and namespaces, and waits for their end.
// The first call returns an error for each process that had to be killed, further calls do nothing. No other method of the
// lab or its hosts may run during Close or after it. Sockets and devices that the caller opened in a namespace and did
// not close keep it alive.
func (l *Lab) Close() error {
	l.mu.Lock()
	closers := l.closers
	l.closers = nil
	l.mu.Unlock()

	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab: %w", err)
	}
	return nil
}

// onClose has Close call fn, which must be a no-op where its work is done already.
func (l *Lab) onClose(fn func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, fn)
}
