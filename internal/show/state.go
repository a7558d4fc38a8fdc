package show

// state is the state of a tunnel in a word or two.
type state int

// The states, the worst first.
const (
	down   state = iota // the link is
	noPath              // no packet leaves
	away                // the link is in another network namespace
	up
)

var states = [...]struct {
	word  string
	style style
}{
	down:   {"down", bad},
	noPath: {"no path", bad},
	away:   {"away", strong},
	up:     {"up", good},
}

func (s state) String() string { return states[s].word }
func (s state) span() span     { return span{states[s].style, states[s].word} }

// state returns the state of the tunnel. Whether a link that is away is up is not known.
func (e entry) state() state {
	switch {
	case !e.Up && !e.Away:
		return down
	case e.Trouble != "":
		return noPath
	case e.Away:
		return away
	}
	return up
}
