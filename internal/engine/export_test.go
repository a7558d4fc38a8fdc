package engine

import (
	"time"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// For tests of what has no clock that a test could set, and of more cases than a
// network could bring about.

type SoftErrors = softErrors

func NewSoftErrors() *SoftErrors { return &softErrors{changed: func(bool) {}} }

func (s *softErrors) Note(now time.Time)      { s.note(now) }
func (s *softErrors) Take(now time.Time) bool { return s.any.Load() && s.take(now) } // as an out loop does
func (s *softErrors) Any() bool               { return s.any.Load() }

func IsSoftError(e rawsock.ICMPError, inheritTTL bool) bool { return isSoftError(e, inheritTTL) }

// Run starts an Engine's loops but those of one kind, as if these hung. It returns whether
// the others have answered the last question.
func (e *Engine) Run(but string) (answered func() bool) {
	type kind struct {
		loop     func()
		answered func() bool
	}
	kinds := map[string]kind{
		"out":  {e.outs[0].run, e.outs[0].set.Answered},
		"in":   {e.ins[0].run, e.ins[0].receiver.Answered},
		"ICMP": {e.hearICMP, e.errors.Answered},
	}
	delete(kinds, but)
	for _, k := range kinds {
		e.running.Go(k.loop)
	}
	e.started.Store(true)
	return func() bool {
		for _, k := range kinds {
			if !k.answered() {
				return false
			}
		}
		return true
	}
}

func (k *Keepalive) Took(inner packet.IPv4) bool { return k.took(inner) }
