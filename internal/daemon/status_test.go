package daemon

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
	"goipip/internal/tunnel"
)

// wants returns a tunnel of a configuration.
func wants(name, remote string) config.Tunnel {
	return config.Tunnel{Config: tunnel.Config{Name: name, Remote: netip.MustParseAddr(remote), Queues: 1}}
}

// newDaemon returns a daemon in a network namespace of its own, and what does something there.
func newDaemon(t *testing.T) (d *Daemon, there func(func() error)) {
	t.Helper()
	labtest.Need(t, "root", "tun")
	host, err := labtest.New(t).Host("host")
	if err != nil {
		t.Fatal(err)
	}
	there = func(f func() error) {
		t.Helper()
		if err := host.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	there(func() (err error) {
		d, err = Open(control.Process{Role: control.RoleRun, Workers: 1}, slog.New(slog.DiscardHandler))
		return err
	})
	t.Cleanup(func() { d.Close(errors.New("the test's end")) })
	return d, there
}

// LastStatus waits neither for tunnels that change, nor for the loops.
func TestLastStatus_WaitsForNothing(t *testing.T) {
	t.Parallel()
	d, there := newDaemon(t)
	there(func() error { return d.Apply([]config.Tunnel{wants("tun01", "192.0.2.1")}) })
	d.changing.Lock() // as a tunnel that starts
	defer d.changing.Unlock()
	got := make(chan control.Status, 1)
	go func() { got <- d.LastStatus() }()
	s := labtest.Within(t, "the status", got)
	if len(s.Tunnels) != 1 || s.Tunnels[0].Name != "tun01" || s.Missing != nil {
		t.Errorf("%+v", s)
	}
	if err := d.Health(); err != nil {
		t.Error(err)
	}
}

// A tunnel of the configuration that does not run is missing, unless it was deleted on request.
func TestStatus_Missing(t *testing.T) {
	t.Parallel()
	d, there := newDaemon(t)
	want := []config.Tunnel{wants("tun01", "192.0.2.1"), wants("lo", "192.0.2.2"), wants("tun03", "192.0.2.3")}
	missing := func(when string, want ...string) {
		t.Helper()
		if got := d.LastStatus().Missing; !slices.Equal(got, want) {
			t.Errorf("%s, %q are missing, want %q", when, got, want)
		}
	}
	missing("before the configuration")
	there(func() error {
		if err := d.Apply(want); err == nil {
			t.Error("a tunnel called lo starts")
		}
		return nil
	})
	missing("after the start", "lo")
	there(func() error { return d.Delete("tun03") })
	missing("after tunnel del", "lo")
	there(func() error { return d.Apply(want[2:]) })
	missing("after a reload")
	if s := d.LastStatus(); len(s.Tunnels) != 1 || s.Tunnels[0].Name != "tun03" {
		t.Errorf("%+v", s.Tunnels)
	}
}

// The first reading of a configuration is not one that was read again.
func TestConfigured(t *testing.T) {
	t.Parallel()
	d, _ := newDaemon(t)
	bad := errors.New("bad")
	start := time.Now()
	for _, c := range []struct {
		err               error
		succeeded, failed uint64
		good              bool
	}{{bad, 0, 0, false}, {nil, 1, 0, true}, {bad, 1, 1, true}, {bad, 1, 2, true}, {nil, 2, 2, true}} {
		d.Configured(c.err)
		r := d.LastStatus().Reloads
		if r == nil || r.Succeeded != c.succeeded || r.Failed != c.failed || r.LastFailed != (c.err != nil) || r.LastGood.After(start) != c.good {
			t.Fatalf("%+v, want %+v", r, c)
		}
	}
}

// However many ask at once, a daemon whose loops go round is alive.
func TestAlive(t *testing.T) {
	t.Parallel()
	d, there := newDaemon(t)
	there(func() error { return d.Apply([]config.Tunnel{wants("tun01", "192.0.2.1")}) })
	for range 100 {
		if err := d.Health(); err != nil || !d.Alive() || !d.Alive() {
			t.Fatalf("not alive, %v", err)
		}
	}
}
