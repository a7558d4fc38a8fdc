package tunnel

import (
	"runtime"
	"strings"
	"time"

	"goipip/internal/rundir"
)

// For tests of what has no clock that a test could set, and of more cases than a
// network could bring about.

// Claim is a claim on a name below a directory that a test brings.
type Claim struct{ *claimed }

func ClaimIn(base, dir, name string) (*Claim, error) {
	c, err := claimIn(rundir.In(base, dir), name)
	if err != nil {
		return nil, err
	}
	return &Claim{c}, nil
}

func (c *Claim) SetName(link string) { c.setName(link) }
func (c *Claim) Release()            { c.release() }

// ICMPErrors returns how many ICMP errors the tunnel has handled.
func (t *Tunnel) ICMPErrors() uint64 { return t.engine.ICMPErrors() }

// paused counts the tunnels whose underlay waits.
var paused int

// PauseUnderlay has the underlay's goroutine, which looks paths up, wait until resume.
// One goroutine may call it and resume.
func (t *Tunnel) PauseUnderlay() (resume func()) {
	w := t.way.Load()
	w.settling.Lock()
	w.following.Doubt()
	paused++
	stacks := make([]byte, 1<<20)
	for waiting := 0; waiting < paused; time.Sleep(time.Millisecond) {
		waiting = 0
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(stack, "tunnel.(*way).Settle(") && strings.Contains(stack, "sync.(*Mutex).Lock") {
				waiting++
			}
		}
	}
	return func() {
		paused--
		w.settling.Unlock()
	}
}
