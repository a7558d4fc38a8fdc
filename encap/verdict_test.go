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
}
