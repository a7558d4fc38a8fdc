package metrics

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	diff "github.com/google/go-cmp/cmp"
)

// docs/metrics.md has all metrics. After a change of the list, copy the table from what this
// test says.
func TestDocs(t *testing.T) {
	const begin, end = "<!-- metrics -->\n", "<!-- end of metrics -->\n"
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begins := strings.Cut(string(text), begin)
	got, _, ends := strings.Cut(rest, end)
	if !begins || !ends {
		t.Fatalf("docs/metrics.md has no table between %q and %q", begin, end)
	}
	if want := table(); got != want {
		t.Errorf("docs/metrics.md (-want +got):\n%s\nThe table is:\n%s", diff.Diff(want, got), want)
	}
}

// table returns the metrics, in Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	sorted := slices.SortedFunc(slices.Values(families), func(a, b *family) int { return cmp.Compare(a.name, b.name) })
	for _, f := range sorted {
		kind, labels := "gauge", ""
		if f.counter {
			kind = "counter"
		}
		if f.labelNames != nil {
			labels = "`" + strings.Join(f.labelNames, "`, `") + "` "
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s| %s |\n", f.name, kind, labels, f.help)
	}
	return b.String()
}
