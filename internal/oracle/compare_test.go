package oracle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// windowSize is how many inputs are on their way at once. It fits the shortest queue, that of a TUN device.
	windowSize = 200
	// lateTime is how long a packet alone waits for an output that the other device had, or that should not come.
	lateTime = 250 * time.Millisecond
	// retries is how often a mismatch is tried alone before it counts.
	retries = 2
	// reportLimit is how many differences a test finds before it gives up, as each takes its time.
	reportLimit = 5
	// failureLimit is how many tests fail before the others give up too.
	failureLimit = 10
)

// mismatch is an input for which the devices did not do the same.
type mismatch struct {
	in   input
	outs [2][]output
}

// compareByRule runs a test for each rule that inputs are about.
func (r *rig) compareByRule(t *testing.T, inputs []input) {
	byRule := map[string][]input{}
	var rules []string
	for _, in := range inputs {
		if byRule[in.rule] == nil {
			rules = append(rules, in.rule)
		}
		byRule[in.rule] = append(byRule[in.rule], in)
	}
	for _, rule := range rules {
		t.Run(rule, func(t *testing.T) { r.compare(t, byRule[rule]) })
	}
}

// compare sends inputs to both devices. It fails the test for each for which they
// did not do the same, also when it was alone, and nothing explains that.
func (r *rig) compare(t *testing.T, inputs []input) {
	t.Helper()
	r.begin(t)
	passed := r.passed
	var list []mismatch
	for window := range slices.Chunk(inputs, windowSize) {
		if list = append(list, r.compareWindow(window, reportLimit-len(list))...); len(list) == reportLimit {
			break
		}
	}
	for i := range inputs {
		if r.late[inputs[i].tag] && len(list) < reportLimit {
			if m, ok := r.alone(inputs[i], true); !ok {
				list = append(list, m)
			}
		}
	}
	clear(r.late)
	r.report(list)
	t.Logf("%d inputs, outputs of %s: %d, of %s: %d", len(inputs),
		deviceNames[0], r.passed[0]-passed[0], deviceNames[1], r.passed[1]-passed[1])
}

// begin makes t the test that fails, unless enough have.
func (r *rig) begin(t *testing.T) {
	t.Helper()
	r.t = t
	if r.failures >= failureLimit {
		t.Skip("enough has failed before")
	}
}

// fatalf ends the test, and all others that use the devices.
func (r *rig) fatalf(format string, args ...any) {
	r.t.Helper()
	r.failures = failureLimit
	r.t.Fatalf(format, args...)
}

// compareWindow returns the first mismatches, at most limit, among a few inputs.
func (r *rig) compareWindow(window []input, limit int) (list []mismatch) {
	r.t.Helper()
	outs, strays := r.exchange(window)
	suspicious := !same(strays[0], strays[1]) // all of them: these are of one
	var again []input
	for i, in := range window {
		m := mismatch{in, [2][]output{outs[0][i], outs[1][i]}}
		if !r.accept(&m) || suspicious {
			again = append(again, in)
		}
	}
	for _, in := range again {
		if len(list) == limit {
			break
		}
		if m, ok := r.alone(in, false); !ok {
			list = append(list, m)
		}
	}
	return list
}

// alone sends an input alone, a few times if need be, and reports whether the
// devices do the same then. With patience it waits for what should not come.
func (r *rig) alone(in input, patience bool) (m mismatch, ok bool) {
	r.t.Helper()
	for range retries {
		if m, ok = r.once(in, patience); ok {
			break
		}
	}
	return m, ok
}

// once sends an input alone, and waits until the devices have done the same, or
// for a while.
func (r *rig) once(in input, patience bool) (m mismatch, ok bool) {
	r.t.Helper()
	r.exchange([]input{in})
	deadline := time.Now().Add(lateTime)
	for {
		m, ok = r.settle(in, false)
		left := time.Until(deadline)
		if left <= 0 || !patience || !ok {
			return m, ok
		}
		r.wait(left)
		r.drain()
	}
}

// settle waits until the devices have done the same about the only input, or for
// a while; also where none has done anything yet, if something must come.
func (r *rig) settle(in input, something bool) (m mismatch, ok bool) {
	r.t.Helper()
	for deadline := time.Now().Add(lateTime); ; {
		m = mismatch{in: in}
		for d := range m.outs {
			m.outs[d] = slices.Concat(r.now.results[d][0], r.now.strays[d])
		}
		missing := something && len(m.outs[0]) == 0 && len(m.outs[1]) == 0
		left := time.Until(deadline)
		if left <= 0 || !missing && (same(m.outs[0], m.outs[1]) || explanation(&m) != nil) {
			return m, r.accept(&m)
		}
		r.wait(left)
		r.drain()
	}
}

// accept reports whether the devices did the same, or differ by what is known.
func (r *rig) accept(m *mismatch) bool {
	if same(m.outs[0], m.outs[1]) {
		return true
	}
	d := explanation(m)
	if d == nil {
		return false
	}
	d.used++
	return true
}

// hexLimit is how much of a packet is shown, in bytes. The rest is cookies.
const hexLimit = 120

func hexadecimal(p []byte) string {
	if len(p) > hexLimit {
		return fmt.Sprintf("%x… (%d bytes)", p[:hexLimit], len(p))
	}
	return fmt.Sprintf("%x", p)
}

// report fails the test for each mismatch.
func (r *rig) report(list []mismatch) {
	r.t.Helper()
	for _, m := range list {
		r.t.Errorf("%v", m)
	}
	if len(list) > 0 {
		r.failures++
	}
}

func (m mismatch) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", m.in.name)
	for _, p := range m.in.packets {
		fmt.Fprintf(&b, "  input %s\n%s", hexadecimal(p), describe(p))
	}
	for d, name := range deviceNames {
		if len(m.outs[d]) == 0 {
			fmt.Fprintf(&b, "  %s: nothing\n", name)
		}
		for _, out := range m.outs[d] {
			fmt.Fprintf(&b, "  %s: out of %s, %s\n%s", name, out.side, hexadecimal(out.frame), describe(ipOf(out.frame)))
		}
	}
	return b.String()
}
