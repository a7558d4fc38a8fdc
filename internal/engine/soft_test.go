package engine_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"goipip/internal/engine"
	"goipip/rawsock"
)

// softTimeout is IPTUNNEL_ERR_TIMEO of include/net/ip_tunnels.h.
const softTimeout = 30 * time.Second

// linuxSoft is what Linux keeps of a tunnel's ICMP errors: err_count and err_time
// of struct ip_tunnel.
type linuxSoft struct {
	count int
	time  time.Time
}

// note is the end of ipip_err in net/ipv4/ipip.c.
func (l *linuxSoft) note(now time.Time) {
	if now.Before(l.time.Add(softTimeout)) {
		l.count++
	} else {
		l.count = 1
	}
	l.time = now
}

// take is what ip_tunnel_xmit in net/ipv4/ip_tunnel.c does for each packet.
func (l *linuxSoft) take(now time.Time) bool {
	if l.count == 0 {
		return false
	}
	if now.Before(l.time.Add(softTimeout)) {
		l.count--
		return true
	}
	l.count = 0
	return false
}

func TestT8_CountAndTime(t *testing.T) {
	start := time.Unix(1000, 0)
	type event struct {
		at   time.Duration
		note bool
		want bool // of take
	}
	note := func(at time.Duration) event { return event{at: at, note: true} }
	take := func(at time.Duration, want bool) event { return event{at: at, want: want} }
	const tick = time.Nanosecond
	for name, events := range map[string][]event{
		"none":                {take(0, false), take(0, false)},
		"one":                 {note(0), take(0, true), take(0, false)},
		"as many as errors":   {note(0), note(1), note(2), take(3, true), take(4, true), take(5, true), take(6, false)},
		"just in time":        {note(0), take(softTimeout-tick, true), take(softTimeout-tick, false)},
		"too late":            {note(0), note(0), take(softTimeout, false), take(softTimeout, false)},
		"the last one counts": {note(0), note(softTimeout - tick), take(softTimeout, true), take(2*softTimeout-2*tick, true), take(2*softTimeout-2*tick, false)},
		"all go at once":      {note(0), note(softTimeout - tick), take(2*softTimeout-tick, false)},
		"old ones are gone":   {note(0), note(0), note(softTimeout), take(softTimeout, true), take(softTimeout, false)},
		"gone is gone":        {note(0), note(0), take(softTimeout, false), note(softTimeout + 1), take(softTimeout+1, true), take(softTimeout+1, false)},
		"in turn":             {note(0), take(0, true), note(1), take(1, true), take(1, false), note(2), take(2, true)},
	} {
		t.Run(name, func(t *testing.T) {
			soft := engine.NewSoftErrors()
			var linux linuxSoft
			for i, e := range events {
				now := start.Add(e.at)
				if e.note {
					soft.Note(now)
					linux.note(now)
					continue
				}
				if got := soft.Take(now); got != e.want {
					t.Errorf("event %d, at %v: a sender is told: %v, want %v", i, e.at, got, e.want)
				}
				if got := linux.take(now); got != e.want {
					t.Fatalf("event %d, at %v: Linux says %v: the test is wrong", i, e.at, got)
				}
			}
		})
	}
}

func TestT8_LikeLinux(t *testing.T) {
	r := rand.New(rand.NewPCG(30, 8))
	soft := engine.NewSoftErrors()
	var linux linuxSoft
	now := time.Unix(1000, 0)
	told := 0
	for i := range 100_000 {
		switch r.IntN(8) { // mostly no time passes, sometimes about as much as counts
		case 0:
			now = now.Add(softTimeout + time.Duration(r.IntN(3)-1))
		case 1, 2:
			now = now.Add(time.Duration(r.Int64N(int64(softTimeout))))
		}
		if r.IntN(2) == 0 {
			soft.Note(now)
			linux.note(now)
		} else {
			got, want := soft.Take(now), linux.take(now)
			if got != want {
				t.Fatalf("event %d: a sender is told: %v, Linux %v", i, got, want)
			}
			if got {
				told++
			}
		}
		if soft.Any() != (linux.count > 0) {
			t.Fatalf("event %d: any is %v, Linux's count %d", i, soft.Any(), linux.count)
		}
	}
	if told < 1000 {
		t.Errorf("only %d senders were told", told)
	}
}

// Several transmit loops tell of each error once.
func TestT8_Concurrent(t *testing.T) {
	const errors, loops = 1000, 4
	soft := engine.NewSoftErrors()
	var told atomic.Int64
	var wg sync.WaitGroup
	now := time.Unix(1000, 0)
	wg.Go(func() {
		for range errors {
			soft.Note(now)
		}
	})
	for range loops {
		wg.Go(func() {
			for range 10 * errors {
				if soft.Take(now) {
					told.Add(1)
				}
			}
		})
	}
	wg.Wait()
	for soft.Take(now) {
		told.Add(1)
	}
	if told.Load() != errors {
		t.Errorf("%d senders were told of %d errors", told.Load(), errors)
	}
}

// countsInLinux is ipip_err in net/ipv4/ipip.c, up to the counting.
func countsInLinux(typ, code int, ttl int) bool {
	const (
		destUnreach, timeExceeded, redirect = 3, 11, 5
		fragNeeded, srFailed, excTTL        = 4, 5, 0
	)
	switch typ {
	case destUnreach:
		if code == srFailed {
			return false
		}
	case timeExceeded:
		if code != excTTL {
			return false
		}
	case redirect:
	default:
		return false
	}
	if typ == destUnreach && code == fragNeeded || typ == redirect {
		return false
	}
	return !(ttl == 0 && typ == timeExceeded)
}

func TestE_WhatCounts(t *testing.T) {
	counting := 0
	for typ := range 0x100 {
		for code := range 0x100 {
			for _, ttl := range []int{0, 64} {
				e := rawsock.ICMPError{Type: uint8(typ), Code: uint8(code), MTU: 1400}
				got, want := engine.IsSoftError(e, ttl == 0), countsInLinux(typ, code, ttl)
				if got != want {
					t.Errorf("%d/%d, ttl %d: counts: %v, in Linux %v", typ, code, ttl, got, want)
				}
				if got {
					counting++
				}
			}
		}
	}
	if want := 2*(0x100-2) + 1; counting != want {
		t.Errorf("%d combinations count, want %d", counting, want)
	}
}
