// Command rules reads what go test -json prints and shows, for each rule of
// docs/rules.md, how the tests went that carry its id in their names.
//
//	go test -json ./... | go run ./internal/rules docs/rules.md
//
// It ends with status 1 when a test failed, or when a rule that is not marked as
// missing has no test.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json ./... | rules RULES.md")
		os.Exit(2)
	}
	ok, err := run(os.Args[1], os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// rule is one line of a table of the rules.
type rule struct {
	id, text string
	missing  bool // marked ○: not there yet
}

// tally counts tests by how they ended.
type tally struct{ passed, failed int }

func run(path string, events io.Reader, out io.Writer) (ok bool, err error) {
	rules, err := readRules(path)
	if err != nil {
		return false, err
	}
	tallies, failures, err := readEvents(events)
	if err != nil {
		return false, err
	}
	fmt.Fprintf(out, "| rule | tests | | |\n|---|---|---|---|\n")
	ok = len(failures) == 0
	for _, r := range rules {
		t := tallies[r.id]
		result := "pass"
		switch {
		case t.failed > 0:
			result = "**fail**"
		case r.missing:
			result = "not yet"
		case t.passed == 0:
			result, ok = "**no test**", false
		}
		fmt.Fprintf(out, "| %s | %d | %s | %s |\n", r.id, t.passed+t.failed, result, r.text)
	}
	for _, f := range failures {
		fmt.Fprintln(out, "\nfailed:", f)
	}
	return ok, nil
}

var ruleLine = regexp.MustCompile(`^\| ([OTREG]\d*) \| ([^|]*?) \|`)

// readRules reads the tables of a Markdown file whose first column is a rule's id.
func readRules(path string) ([]rule, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rules []rule
	for line := range strings.Lines(string(b)) {
		if m := ruleLine.FindStringSubmatch(line); m != nil {
			text, missing := strings.CutPrefix(m[2], "○ ")
			rules = append(rules, rule{m[1], text, missing})
		}
	}
	if len(rules) == 0 {
		return nil, fmt.Errorf("%s: no rules found", path)
	}
	return rules, nil
}

// testName finds the rule's id in the name of a test or subtest: TestT7_PathMTU,
// TestOracle/T7.
var testName = regexp.MustCompile(`(?:^Test|/)([OTREG]\d*)(?:_|$|/)`)

// readEvents reads the output of go test -json (go doc test2json).
func readEvents(r io.Reader) (tallies map[string]tally, failures []string, err error) {
	tallies = map[string]tally{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e struct{ Action, Package, Test string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, nil, fmt.Errorf("read go test -json: %w: %q", err, lines.Text())
		}
		if e.Action == "fail" || e.Action == "build-fail" {
			failures = append(failures, strings.TrimSpace(e.Package+" "+e.Test))
		}
		for _, m := range testName.FindAllStringSubmatch(e.Test, -1) {
			t := tallies[m[1]]
			switch e.Action {
			case "pass":
				t.passed++
			case "fail":
				t.failed++
			}
			tallies[m[1]] = t
		}
	}
	return tallies, failures, lines.Err()
}
