package tun

// NewQueue makes a queue of a descriptor that a test brings.
var NewQueue = newQueue

// Close closes what its device would.
func (q *Queue) Close() error { return q.fd.Close() }
