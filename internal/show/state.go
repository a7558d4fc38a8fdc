package show

import "goipip/internal/daemon/control"

// State is the state of a tunnel in a word or two.
type State int

// The states, the worst first.
const (
	Down   State = iota // the link is
	NoPath              // no packet leaves
	Away                // the link is in another network namespace
	Up
)

var states = [...]struct {
	word  string
	style style
}{
	Down:   {"down", bad},
	NoPath: {"no path", bad},
	Away:   {"away", strong},
	Up:     {"up", good},
}

func (s State) String() string { return states[s].word }
func (s State) span() span     { return span{states[s].style, states[s].word} }

// StateOf returns the state of the tunnel. Whether a link that is away is up is not known.
func StateOf(t *control.TunnelStatus) State {
	switch {
	case !t.Up && !t.Away:
		return Down
	case t.Trouble != "":
		return NoPath
	case t.Away:
		return Away
	}
	return Up
}

func (e entry) state() State { return StateOf(e.TunnelStatus) }
