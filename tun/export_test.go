package tun

// NewQueue makes a queue of a test's descriptor.
var NewQueue = newQueue

// QdiscError returns the error with which Setup fails after an error of the qdisc.
var QdiscError = qdiscError

// Asking has the Device be as while QueueDrops waits for the kernel, until done is called.
func (d *Device) Asking() (done func()) {
	d.drops.mu.Lock()
	d.host.mu.Lock()
	return func() {
		d.host.mu.Unlock()
		d.drops.mu.Unlock()
	}
}

// Close closes the queue, as its device would.
func (q *Queue) Close() error { return q.fd.Close() }
