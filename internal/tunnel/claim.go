package tunnel

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"goipip/internal/rundir"
)

// claimed keeps a pair of outer addresses to one tunnel of a network namespace
// (O7): two tunnels between the same ends would each deliver every packet. It is a
// lock on the file
//
//	/run/goipip/NAMESPACE/LOCAL-REMOTE
//
// (any-REMOTE without a local address, O11) which names the process and the link that hold it.
type claimed struct {
	lock    *rundir.Lock // nil where there is none
	missing error        // why there is none
}

// claim claims the ends of cfg's tunnel in the network namespace of the calling
// thread. If another tunnel has them, the error is syscall.EEXIST and says which.
// Where no claim is possible, the tunnel may start without: see claimed.missing.
// The caller releases the claim.
func claim(cfg Config) (*claimed, error) {
	dirs, err := rundir.Dirs()
	if err != nil {
		return &claimed{missing: err}, nil
	}
	var missing []error
	for _, dir := range dirs {
		c, err := claimIn(dir, cfg.ends())
		if err == nil {
			return c, nil
		}
		if errors.Is(err, ErrHeld) {
			return nil, fmt.Errorf("tunnel from %s to %v: %w: %w", cfg.LocalText(), cfg.Remote, syscall.EEXIST, err)
		}
		missing = append(missing, err)
	}
	return &claimed{missing: errors.Join(missing...)}, nil
}

// ends is the name of the file that stands for the pair of addresses.
func (c Config) ends() string { return fmt.Sprintf("%s-%v", c.LocalText(), c.Remote) }

// claimIn claims ends by the file of that name in dir.
func claimIn(dir rundir.Dir, ends string) (*claimed, error) {
	lock, err := dir.Lock(ends)
	var held *rundir.LockedError
	if errors.As(err, &held) {
		return nil, readHeld(held.Content)
	} else if err != nil {
		return nil, err
	}
	lock.Write(fmt.Sprintln(os.Getpid()))
	return &claimed{lock: lock}, nil
}

// setName adds the name of the link, for the message to other tunnels that want the same
// ends.
func (c *claimed) setName(name string) {
	if c.lock != nil {
		c.lock.Write(fmt.Sprintln(os.Getpid(), name))
	}
}

// release gives the ends up and removes the file. It does nothing the second time,
// nor for a nil claim.
func (c *claimed) release() {
	if c != nil && c.lock != nil {
		c.lock.Release()
	}
}

// ErrHeld means that another tunnel of this network namespace has the same two ends.
var ErrHeld = errors.New("same two ends")

// HeldError is ErrHeld with the content of the file.
type HeldError struct {
	PID  int    // 0 if unknown
	Link string // "" if unknown
}

// Is reports whether target is ErrHeld.
func (e HeldError) Is(target error) bool { return target == ErrHeld }

func (e HeldError) Error() string {
	switch {
	case e.Link != "":
		return fmt.Sprintf("goipip with process id %d has the same two ends (ip link delete %s)", e.PID, e.Link)
	case e.PID != 0:
		return fmt.Sprintf("goipip with process id %d has the same two ends (kill %[1]d)", e.PID)
	}
	return "another goipip has the same two ends (ip link delete)"
}

func readHeld(content string) (e HeldError) {
	_, _ = fmt.Sscanln(content, &e.PID, &e.Link)
	return e
}

// PairHeld returns the [HeldError] of another tunnel of this network namespace that has the two
// ends of cfg, and nil if there is none. A tunnel that starts meanwhile is not disturbed, unless a
// killed one with the same ends has left its file.
func PairHeld(cfg Config) error {
	dirs, err := rundir.Dirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir.Path(cfg.ends())); err == nil {
			c, err := claim(cfg)
			c.release()
			return err
		}
	}
	return nil
}
