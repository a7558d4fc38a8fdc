package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// tally counts tests by how they ended.
type tally struct{ passed, failed, skipped int }

// results is what go test -json told (go doc test2json).
type results struct {
	out     io.Writer
	tallies map[string]tally // by rule
	all     tally
	failed  []string // tests, and packages
	running map[string]bool
	output  map[name][]string // of what has not ended yet
}

// name is a test with its subtests, or with an empty test the rest of a package.
type name struct{ pkg, test string }

func newResults(out io.Writer) *results {
	return &results{out: out, tallies: map[string]tally{}, running: map[string]bool{}, output: map[name][]string{}}
}

type event struct{ Action, Package, ImportPath, Test, Output string }

// read reads all events, and prints the lines of packages, and what failed tests
// said, as they come.
func (r *results) read(events io.Reader) error {
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read go test -json: %w: %q", err, lines.Text())
		}
		r.add(e)
	}
	return lines.Err()
}

// noise are the lines of output that say no more than the events do.
var noise = regexp.MustCompile(`^(=== (RUN|PAUSE|CONT|NAME) |PASS\n)`)

func (r *results) add(e event) {
	root, _, isSub := strings.Cut(e.Test, "/")
	n := name{e.Package, root}
	switch e.Action {
	case "start":
		r.running[e.Package] = true
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "build-fail":
		r.failed = append(r.failed, e.ImportPath)
	case "output":
		if !noise.MatchString(e.Output) {
			r.output[n] = append(r.output[n], e.Output)
		}
	case "pass", "fail", "skip":
		r.count(e)
		if isSub {
			return
		}
		if e.Action == "fail" || e.Test == "" {
			fmt.Fprint(r.out, strings.Join(r.output[n], ""))
		}
		delete(r.output, n)
		if e.Test == "" {
			delete(r.running, e.Package)
		}
	}
}

// testName finds the rule's id in the name of a test or subtest: TestT7_PathMTU,
// TestOracle/T7.
var testName = regexp.MustCompile(`(?:^Test|/)([OTREG]\d*)(?:_|$|/)`)

// ruleIDs returns the rules that a test is named after, as in TestT12_R1_Peer.
func ruleIDs(test string) []string {
	var ids []string
	for {
		m := testName.FindStringSubmatchIndex(test)
		if m == nil {
			return ids
		}
		ids = append(ids, test[m[2]:m[3]])
		test = "/" + strings.TrimPrefix(test[m[3]:], "_")
	}
}

// count counts the end of a test or a package.
func (r *results) count(e event) {
	if e.Action == "fail" {
		r.failed = append(r.failed, strings.TrimSpace(e.Package+" "+e.Test))
	}
	if e.Test == "" {
		return
	}
	r.all.add(e.Action)
	for _, id := range ruleIDs(e.Test) {
		t := r.tallies[id]
		t.add(e.Action)
		r.tallies[id] = t
	}
}

func (t *tally) add(action string) {
	switch action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
	case "skip":
		t.skipped++
	}
}

// ok reports whether nothing failed, and all packages came to their end.
func (r *results) ok() bool { return len(r.failed) == 0 && len(r.running) == 0 }

// summary tells the numbers, and the names of all that did not pass.
func (r *results) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d tests passed, %d failed, %d skipped\n", r.all.passed, r.all.failed, r.all.skipped)
	for _, f := range r.failed {
		fmt.Fprintln(&b, "failed:", f)
	}
	for _, pkg := range slices.Sorted(maps.Keys(r.running)) {
		fmt.Fprintln(&b, "did not end:", pkg)
	}
	return b.String()
}
