package tunnel

// PairHeld returns the [HeldError] of another tunnel of this network namespace that has the two
// ends of cfg, and nil if there is none. It claims them for a moment (O7).
func PairHeld(cfg Config) error {
	c, err := claim(cfg)
	c.release()
	return err
}
