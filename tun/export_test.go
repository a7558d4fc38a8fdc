package tun

// NewQueue makes a queue of a descriptor that a test brings.
var NewQueue = newQueue

// QdiscError tells whether Setup fails by an error of the qdisc's.
var QdiscError = qdiscError

// Close closes what its device would.
func (q *Queue) Close() error { return q.fd.Close() }
