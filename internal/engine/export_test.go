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

func (k *Keepalive) Took(inner packet.IPv4) bool { return k.took(inner) }
