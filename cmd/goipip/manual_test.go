//go:build linux

package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// mdLink is a link of Markdown, of which a manual page has the text only.
var mdLink = regexp.MustCompile(`\[([^]]+)\]\([^)]+\)`)

// manualOf is docs/config.md as the source of a manual page: sections are of the first level, and
// tables of keys are lists, since cells with sentences do not fit on a terminal.
func manualOf(doc string, date time.Time) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%% \"goipip.toml\" \"5\" %q \"goipip\" \"goipip\"\n# NAME\ngoipip.toml - the tunnels of goipip run\n\n# DESCRIPTION\n", date.Format("Jan 2006"))
	code, table := false, false
	for line := range strings.Lines(doc) {
		switch {
		case strings.HasPrefix(line, "```"):
			code = !code
		case code || strings.HasPrefix(line, "    "):
		case strings.HasPrefix(line, "# "), strings.HasPrefix(line, "|-"), strings.HasPrefix(line, "<!--"):
			continue
		case strings.HasPrefix(line, "## "):
			line = line[1:]
		case strings.HasPrefix(line, "| "):
			if table {
				out.WriteString(definition(line))
			}
			table = true // the first row has the names of columns
			continue
		default:
			table = false
			line = mdLink.ReplaceAllString(line, "$1")
		}
		out.WriteString(line)
	}
	out.WriteString("\n# SEE ALSO\n**goipip(8)**, **goipip-run(8)**, **goipip-check(8)**\n")
	return out.String()
}

// definition is a row of a table, | key | type | value | default |, as an element of a list.
func definition(row string) string {
	cells := strings.Split(strings.Trim(strings.TrimSpace(row), "|"), " | ")
	for len(cells) < 4 {
		cells = append(cells, "")
	}
	head := "**" + strings.Trim(strings.TrimSpace(cells[0]), "`") + "** (" + cells[1]
	if d := strings.TrimSpace(cells[3]); d != "" {
		head += "; default: " + d
	}
	return head + ")\n: " + mdLink.ReplaceAllString(cells[2], "$1") + "\n\n"
}
