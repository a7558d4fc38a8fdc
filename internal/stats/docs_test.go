package stats_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/stats"
)

// docs/counters.md has the list of reasons. After a change of the list, copy the table
// from what this test says.
func TestG5_Docs(t *testing.T) {
	const begin, end = "<!-- reasons -->\n", "<!-- end of reasons -->\n"
	_, rest, begins := strings.Cut(read(t, "../../docs/counters.md"), begin)
	got, _, ends := strings.Cut(rest, end)
	if !begins || !ends {
		t.Fatalf("docs/counters.md has no table between %q and %q", begin, end)
	}
	if want := table(); got != want {
		t.Errorf("docs/counters.md (-want +got):\n%s\nThe table is:\n%s", cmp.Diff(want, got), want)
	}
}

// table returns the reasons to drop a packet, in Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| reason | meaning | sent: Linux's counter | received: Linux's counter | rules |\n|---|---|---|---|---|\n")
	for r := range stats.NumReasons {
		if r.Dropped() {
			fmt.Fprintf(&b, "| `%v` | %s | %s| %s| %s |\n", r, r.Help(), cell(r.TX()), cell(r.RX()), r.Rule())
		}
	}
	return b.String()
}

func cell(c stats.LinkCounter) string {
	if c == "" {
		return ""
	}
	return fmt.Sprintf("`%s` ", c)
}
