package doctor_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"goipip/internal/doctor"

	"github.com/google/go-cmp/cmp"
)

const page = "../../docs/troubleshooting.md"

// TestDocs holds docs/troubleshooting.md and the checks together: each is explained, and some
// symptom leads to it.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var explained, led []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllSubmatch(text, -1) {
		explained = append(explained, string(row[1]))
	}
	if diff := cmp.Diff(doctor.Checks(), explained); diff != "" {
		t.Errorf("the table of checks (-want +got):\n%s", diff)
	}
	for _, item := range regexp.MustCompile("(?m)^- ((`[a-z-]+`(, )?)+): ").FindAllSubmatch(text, -1) {
		for _, name := range regexp.MustCompile("[a-z-]+").FindAll(item[1], -1) {
			led = append(led, string(name))
		}
	}
	slices.Sort(led)
	if diff := cmp.Diff(slices.Sorted(slices.Values(doctor.Checks())), slices.Compact(led)); diff != "" {
		t.Errorf("checks that symptoms lead to (-want +got):\n%s", diff)
	}
}
