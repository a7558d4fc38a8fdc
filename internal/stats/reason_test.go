package stats_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"goipip/internal/stats"
)

// G5: the reasons are a closed list, and each has a name of its own, by which
// counters and logs tell them apart, and all else that is said about it.
func TestG5_Reasons(t *testing.T) {
	if stats.Deliver != 0 {
		t.Errorf("Deliver is %d, want the zero value", stats.Deliver)
	}
	name := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	seen := make(map[string]stats.Reason)
	for r := range stats.NumReasons {
		if !name.MatchString(r.String()) {
			t.Errorf("reason %d has the name %q", r, r)
		}
		if other, ok := seen[r.String()]; ok {
			t.Errorf("reasons %d and %d are both called %q", other, r, r)
		}
		seen[r.String()] = r
		if h := r.Help(); h == "" || strings.ContainsAny(h, "\n|") || strings.HasSuffix(h, ".") {
			t.Errorf("%v: help %q", r, h)
		}
		if r.TX() == "" && r.RX() == "" {
			t.Errorf("%v occurs in neither direction", r)
		}
		if want := r != stats.Deliver && r != stats.DeliverNonECT; r.Dropped() != want {
			t.Errorf("%v: dropped %v, want %v", r, r.Dropped(), want)
		}
		for _, c := range []stats.LinkCounter{r.TX(), r.RX()} {
			if passed := c == stats.TXPackets || c == stats.RXPackets; c != "" && passed == r.Dropped() {
				t.Errorf("%v is counted in %s", r, c)
			}
		}
	}
}

// G5: docs/rules.md and the list of reasons say the same: a reason's rules exist, the
// rules name the reasons that they have, and every reason to drop a packet stands there.
func TestG5_ReasonsInRules(t *testing.T) {
	text := read(t, "../../docs/rules.md")
	line := regexp.MustCompile(`(?m)^\| ([OTREG]\d*) \| (\*\*.*) \|$`)
	quoted := regexp.MustCompile("`([a-z0-9_]+)`")
	counted := map[string][]string{} // as which reasons, by rule
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		id, columns := m[1], strings.Split(m[2], " | ")
		counted[id] = []string{}
		if len(columns) < 2 {
			continue
		}
		for _, q := range quoted.FindAllStringSubmatch(columns[1], -1) {
			counted[id] = append(counted[id], q[1])
		}
	}
	if len(counted) < 36 {
		t.Fatalf("found only %d rules", len(counted))
	}
	rules := map[string][]string{} // of a reason, by name
	for r := range stats.NumReasons {
		rules[r.String()] = strings.Split(r.Rule(), ", ")
		for _, id := range rules[r.String()] {
			if _, ok := counted[id]; !ok {
				t.Errorf("%v: docs/rules.md has no rule %q", r, id)
			}
		}
		if r.Dropped() && !strings.Contains(text, "`"+r.String()+"`") {
			t.Errorf("docs/rules.md says nothing about %v", r)
		}
	}
	for id, names := range counted {
		for _, name := range names {
			if !slices.Contains(rules[name], id) {
				t.Errorf("%s is counted as %s in docs/rules.md, whose rules are %v here", id, name, rules[name])
			}
		}
	}
}

// A reason of both directions has the rules of each.
func TestReason_RuleOf(t *testing.T) {
	for r, want := range map[stats.Reason][2]string{
		stats.Malformed:  {"T1", "R4"},
		stats.TTLExpired: {"G3", "G3"},
		stats.NotIPv4:    {"T1, G6", "G6"},
		stats.BadECN:     {"", "R5"},
	} {
		if got := [2]string{r.RuleOf(true), r.RuleOf(false)}; got != want {
			t.Errorf("%v: %q, want %q", r, got, want)
		}
	}
	for r := range stats.NumReasons {
		if r.Dropped() && (r.TX() != "" && r.RuleOf(true) == "" || r.RX() != "" && r.RuleOf(false) == "") {
			t.Errorf("%v has no rule", r)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
