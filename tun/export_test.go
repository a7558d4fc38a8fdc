package tun

// NewQueue makes a queue of a test's descriptor.
var NewQueue = newQueue

// QdiscError returns the error with which Setup fails after an error of the qdisc.
var QdiscError = qdiscError

// Close closes the queue, as its device would.
func (q *Queue) Close() error { return q.fd.Close() }
