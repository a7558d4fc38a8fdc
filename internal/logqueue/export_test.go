package logqueue

const MaxRuns = maxRuns

// Runs returns how many runs are kept.
func (l *Limiter) Runs() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.runs)
}
