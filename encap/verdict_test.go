package encap_test

import (
	"testing"

	"goipip/encap"
)

// G5: the reasons are a closed list, and each has a name of its own, by which
// counters and logs tell them apart.
func TestG5_VerdictNames(t *testing.T) {
	if encap.Deliver != 0 {
		t.Errorf("Deliver is %d, want the zero value", encap.Deliver)
	}
	seen := make(map[string]encap.Verdict)
	for v := range encap.NumVerdicts {
		name := v.String()
		if name == "" {
			t.Errorf("verdict %d has no name", v)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("verdicts %d and %d are both called %q", other, v, name)
		}
		seen[name] = v
	}
	// Formatting a bad value happens in a log line, the last place to panic.
	for _, v := range []encap.Verdict{encap.NumVerdicts, 255} {
		if _, ok := seen[v.String()]; ok {
			t.Errorf("verdict %d has the name of a real one, %q", v, v)
		}
	}
}
