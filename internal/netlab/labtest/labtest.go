// Package labtest is what tests and benchmarks on a netlab share: what the machine must have, deadlines, and the goipip
// binary.
package labtest

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
)

const (
	// testTimeout bounds the work of one test in a lab.
	testTimeout = time.Minute
	// waitTimeout bounds the wait for one condition.
	waitTimeout = 10 * time.Second
	// pollInterval lies between two looks at a condition.
	pollInterval = 5 * time.Millisecond
)

// New returns a lab that ends with the test. It needs "root", see [Need].
func New(tb testing.TB) *netlab.Lab {
	tb.Helper()
	Need(tb, "root")
	lab, err := netlab.New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := lab.Close(); err != nil {
			tb.Error(err)
		}
	})
	return lab
}

// Context returns a context that ends with the test, or after a minute, so that what hangs fails by name and the lab is
// still closed.
func Context(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), testTimeout)
	tb.Cleanup(cancel)
	return ctx
}

// WaitFor returns when cond does, which it asks again and again, and fails the test with what it waited for after ten
// seconds. It replaces every sleep.
func WaitFor(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	deadline := time.Now().Add(waitTimeout)
	for !cond() {
		if time.Now().After(deadline) {
			tb.Fatalf("waited %v in vain for %s", waitTimeout, what)
		}
		time.Sleep(pollInterval)
	}
}

// Within returns what arrives on ch, and fails the test with what it waited for after ten seconds.
func Within[T any](tb testing.TB, what string, ch <-chan T) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(waitTimeout):
		tb.Fatalf("waited %v in vain for %s", waitTimeout, what)
	}
	panic("not reached")
}

// WaitParked returns when n goroutines wait for a descriptor within a function, such as "tun.(*Queue).Read".
func WaitParked(tb testing.TB, function string, n int) {
	tb.Helper()
	stacks := make([]byte, 1<<20)
	WaitFor(tb, function+" to wait", func() bool {
		parked := 0
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			waits := strings.Contains(stack, "descriptor.(*FD).Wait") || strings.Contains(stack, "descriptor.(*Set[...]).sleep")
			if waits && strings.Contains(stack, function+"(") {
				parked++
			}
		}
		return parked == n
	})
}
