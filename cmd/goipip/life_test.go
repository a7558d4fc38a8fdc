//go:build linux

package main

import (
	"slices"
	"testing"
)

// The watchdog hears of a daemon all of whose loops go round, and of one that is busy with many
// tunnels.
func TestLife(t *testing.T) {
	loops, steps := true, uint64(0)
	beats := make(chan struct{}, 1)
	l := life{beats: beats, loops: func() bool { return loops }, steps: func() uint64 { return steps }}
	answer := func() { l.asked = nil } // as follow does when the main loop receives
	for i, c := range []struct {
		what string
		do   func()
		want bool
	}{
		{"nothing has been asked yet", func() {}, true},
		{"the main loop answers", answer, true},
		{"the main loop hangs", func() {}, false},
		{"the main loop hangs on", func() {}, false},
		{"the main loop is busy, and gets on", func() { steps++ }, true},
		{"the main loop answers again", answer, true},
		{"a loop that carries packets hangs", func() { answer(); loops = false }, false},
		{"and goes round again", func() { answer(); loops = true }, true},
	} {
		c.do()
		if got := l.shows(); got != c.want {
			t.Errorf("%d, %s: life shows %t, want %t", i, c.what, got, c.want)
		}
	}
}

func TestWithoutManager(t *testing.T) {
	env := []string{"PATH=/bin", "NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=1", "JOURNAL_STREAM=8:1", "NOTIFY=1"}
	if got, want := withoutManager(env), []string{"PATH=/bin", "NOTIFY=1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if env[1] != "NOTIFY_SOCKET=/run/x" {
		t.Error("the caller's environment has changed")
	}
}
