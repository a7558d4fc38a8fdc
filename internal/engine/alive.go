package engine

// Alive reports whether each loop has gone round since the call before, and asks for the next
// one. The loops answer where they wait for packets, and between two batches. Any goroutine
// may call it, some time apart: an idle loop answers in microseconds.
func (e *Engine) Alive() bool {
	if !e.started.Load() {
		return true
	}
	alive := e.errors.Answered()
	for _, o := range e.outs {
		alive = o.set.Answered() && alive
	}
	for _, in := range e.ins {
		alive = in.receiver.Answered() && alive
	}
	e.errors.Poke()
	for _, o := range e.outs {
		o.set.Poke()
	}
	for _, in := range e.ins {
		in.receiver.Poke()
	}
	return alive
}
