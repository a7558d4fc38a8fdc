package bench

import (
	"fmt"
	"math"
	"testing"
	"time"
)

const (
	// lossless is the part of datagrams that may be lost at a rate that counts.
	lossless = 0.001
	// precision is how near the rate that counts and one that does not must come.
	precision = 1.05
	// firstStep is from one rate to try to the next while it is not known between
	// which two the limit lies.
	firstStep = 1.5
	// maxSteps bounds a search.
	maxSteps = 12
	// keepsUp is the part of a rate that the sender must reach, else the limit is
	// its own.
	keepsUp = 0.9
)

// paced is a load of UDP in packets of size bytes, at the highest rate at which
// less than one of a thousand is lost.
func paced(size int) opener {
	return func(tb testing.TB, from, to *site) move {
		tb.Helper()
		f := openFlow(tb, from, to, size)
		return func(size int, deadline time.Time) (tally, error) {
			s := search{flow: f, step: time.Duration(size) * time.Microsecond, deadline: deadline, above: unpaced}
			return s.run()
		}
	}
}

// search looks for the highest rate without loss.
type search struct {
	flow     *flow
	step     time.Duration // how long each try takes
	deadline time.Time
	best     passage // without loss
	below    float64 // the rate of best
	above    float64 // the lowest rate that was tried in vain
}

// run begins with what arrives when all that is possible is sent. That may be more
// than the answer, where a queue lost a part, or less, where losing it took time.
func (s *search) run() (tally, error) {
	flood, err := s.flow.pass(unpaced, s.step, s.deadline)
	if err != nil {
		return tally{}, err
	}
	if flood.received == 0 {
		return tally{}, fmt.Errorf("none of %d datagrams arrived", flood.sent)
	}
	rate := flood.rate()
	for range maxSteps {
		limited, err := s.try(rate)
		if err != nil {
			return tally{}, err
		}
		if limited || s.above < s.below*precision {
			break
		}
		rate = s.next(rate)
	}
	return tally{rates: []float64{s.best.rate()}, floods: []float64{flood.rate()}}, nil
}

// try runs the flow at a rate, and once more where some was lost: it may have been
// for a reason that is none of the tunnel's. It says whether the sender is at its
// own limit.
func (s *search) try(rate float64) (limited bool, err error) {
	for range 2 {
		p, err := s.flow.pass(rate, s.step, s.deadline)
		if err != nil {
			return false, err
		}
		if p.loss() < lossless {
			s.best, s.below = p, rate
			return p.rate() < rate*keepsUp, nil
		}
	}
	s.above = rate
	return false, nil
}

// next returns the rate to try after rate.
func (s *search) next(rate float64) float64 {
	switch {
	case math.IsInf(s.above, 1):
		return rate * firstStep
	case s.below == 0:
		return rate / firstStep
	}
	return math.Sqrt(s.below * s.above)
}
