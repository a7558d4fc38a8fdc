package underlay_test

import (
	"os"
	"testing"

	"goipip/internal/netlab/labtest"
	"goipip/internal/underlay"
)

// A default IPsec policy that blocks packets of any direction is a filter.
func TestFiltered_IPsecDefault(t *testing.T) {
	labtest.Need(t, "root", "ip")
	s := watch(t)
	wait := func(what string, filtered bool) {
		t.Helper()
		labtest.WaitFor(t, what, func() bool {
			p, _ := s.f.knows()
			return p != (underlay.Path{}) && (p.Filtered != "") == filtered
		})
	}
	wait("a path without filters", false)
	for _, direction := range []string{"in", "fwd", "out"} {
		if _, err := s.host.Output("ip", "xfrm", "policy", "setdefault", direction, "block"); err != nil {
			t.Skip("no default policies here: ", err)
		}
		wait(direction+" block", true)
		ip(t, s.host, []string{"xfrm policy setdefault " + direction + " accept"})
		wait(direction+" accept", false)
	}
}

// Do runs in the Watcher's namespace.
func TestDo(t *testing.T) {
	labtest.Need(t, "root")
	s := watch(t)
	var want, got string
	for _, do := range []struct {
		in  func(func() error) error
		its *string
	}{{s.host.Do, &want}, {s.w.Do, &got}} {
		if err := do.in(func() (err error) {
			*do.its, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if here, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || got != want || got == here {
		t.Errorf("Do runs in %s, want %s, and not %s; %v", got, want, here, err)
	}
}
