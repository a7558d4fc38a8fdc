package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// rule is one line of a table of the rules.
type rule struct{ id, title string }

// ruleLine begins with the rule's id and, in bold, its title.
var ruleLine = regexp.MustCompile(`^\| ([OTREG]\d*) \| \*\*(.+?)\*\*`)

// readRules reads the tables of a Markdown file whose first column is a rule's id.
func readRules(path string) ([]rule, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rules []rule
	for line := range strings.Lines(string(b)) {
		if m := ruleLine.FindStringSubmatch(line); m != nil {
			rules = append(rules, rule{m[1], m[2]})
		}
	}
	if len(rules) == 0 {
		return nil, fmt.Errorf("%s: no rules found", path)
	}
	return rules, nil
}

const head = "| rule | | |\n|---|---|---|\n"

// table returns the rules with the results of their tests, in Markdown, and whether
// none failed and each has one. A rule whose tests were all skipped is neither.
func table(rules []rule, tallies map[string]tally) (rows string, ok bool) {
	var b strings.Builder
	b.WriteString(head)
	ok = true
	for _, r := range rules {
		result := "✓"
		switch t := tallies[r.id]; {
		case t.failed > 0:
			result, ok = fmt.Sprintf("**%d of %d fail**", t.failed, t.failed+t.passed), false
		case t.passed > 0:
		case t.skipped > 0:
			result = "skipped"
		default:
			result, ok = "**no test**", false
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.id, r.title, result)
	}
	return b.String(), ok
}

// The marks between which a file has the table.
const (
	beginMark = "<!-- rules -->\n"
	endMark   = "<!-- end of rules -->\n"
)

// putInto replaces the table in a file.
func putInto(path, rows string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(b), beginMark)
	_, after, ends := strings.Cut(rest, endMark)
	if !begins || !ends {
		return fmt.Errorf("%s: no place for the table between %q and %q", path, beginMark, endMark)
	}
	return os.WriteFile(path, []byte(before+beginMark+rows+endMark+after), 0o644)
}
