package tunnel

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

// For tests of what has no clock that a test could set, and of more cases than a
// network could bring about.

// Claim is a claim on a name below a directory that a test brings.
type Claim struct{ claimed }

func ClaimIn(base, dir, name string) (*Claim, error) {
	file, err := lockFile(base, dir, name)
	if err != nil {
		return nil, err
	}
	return &Claim{claimed{file: file}}, nil
}

func (c *Claim) SetName(link string) { c.setName(link) }
func (c *Claim) Release()            { c.release() }

var ErrHeld = errHeld

// ICMPErrors returns how many ICMP errors the tunnel has handled.
func (t *Tunnel) ICMPErrors() uint64 { return t.engine.ICMPErrors() }

// PauseUnderlay has the underlay's goroutine, which looks paths up, wait until resume.
func (t *Tunnel) PauseUnderlay() (resume func()) {
	w := t.way.Load()
	w.settling.Lock()
	w.following.Doubt()
	settle, stacks := fmt.Sprintf("tunnel.(*way).Settle(%p", w), make([]byte, 1<<20)
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			waits = waits || strings.Contains(stack, settle) && strings.Contains(stack, "sync.(*Mutex).Lock")
		}
	}
	return w.settling.Unlock
}
