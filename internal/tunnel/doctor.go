package tunnel

import (
	"os"

	"goipip/internal/rundir"
)

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
