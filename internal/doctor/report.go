package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// WriteJSON writes one document with all results, and the worst status.
func WriteJSON(w io.Writer, results []Result) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Status Status   `json:"status"`
		Checks []Result `json:"checks"`
	}{Worst(results), results})
}

// colours are SGR parameters by status (ECMA-48 §8.3.117).
var colours = [...]string{OK: "32", Warning: "33", Failure: "1;31"}

// Layout says how WriteText writes.
type Layout struct {
	Width  int // columns, at which text is wrapped; 0 for no limit
	Colour bool
}

// WriteText writes results for people: of what is wrong, why that matters and the cure. With several
// tunnels each line names its own, but what is ok for more than one is one line. Commands are never
// wrapped, so that they can be copied.
func WriteText(w io.Writer, results []Result, layout Layout) error {
	width := len("  cure")
	tunnels, fine := map[string]bool{}, map[string]int{} // and how many of them a check is ok for
	for _, r := range results {
		width = max(width, len(r.Check))
		if r.Tunnel != "" {
			tunnels[r.Tunnel] = true
			if r.Status == OK {
				fine[r.Check]++
			}
		}
	}
	var b strings.Builder
	row := func(first, second, text string) {
		fmt.Fprintf(&b, "%s  %-*s  %s\n", first, width, second, printable(text))
	}
	wrapped := func(first, second, text string) {
		for _, line := range wrap(text, layout.Width-len("failure    ")-width) {
			row(first, second, line)
			first, second = "       ", ""
		}
	}
	for _, r := range results {
		saw := r.Saw
		if len(tunnels) > 1 && r.Tunnel != "" {
			saw = r.Tunnel + ": " + saw
			if n := fine[r.Check]; r.Status == OK && n > 1 {
				saw = fmt.Sprintf("for %d tunnels", n)
				fine[r.Check] = 0
			} else if r.Status == OK && n == 0 {
				continue // said already
			}
		}
		status := fmt.Sprintf("%-7s", r.Status)
		if layout.Colour {
			status = "\x1b[" + colours[r.Status] + "m" + status + "\x1b[0m"
		}
		wrapped(status, r.Check, saw)
		if r.Status == OK {
			continue
		}
		wrapped("       ", "  why", r.Why)
		if r.Cure != "" {
			wrapped("       ", "  cure", r.Cure)
		}
		for _, c := range r.Commands {
			row("       ", "  type", c)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// leastWidth is that of a column in which it makes sense to wrap text.
const leastWidth = 20

// wrap breaks text at spaces into lines of at most n columns, of more only for longer words. It does
// not if n is too small.
func wrap(text string, n int) (lines []string) {
	if n < leastWidth {
		return []string{text}
	}
	line, columns := "", 0
	for word := range strings.FieldsSeq(text) {
		w := utf8.RuneCountInString(word)
		switch {
		case line == "":
			line, columns = word, w
		case columns+1+w > n:
			lines = append(lines, line)
			line, columns = word, w
		default:
			line, columns = line+" "+word, columns+1+w
		}
	}
	return append(lines, line)
}

// printable replaces control characters, which names of links may have and a terminal obeys.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
