package show

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// style is the parameters of an SGR sequence (ECMA-48 §8.3.117).
type style string

// The styles.
const (
	plain  style = ""
	strong style = "1"
	bad    style = "1;31" // red
	good   style = "32"   // green
	warn   style = "33"   // yellow
)

// span is a text of one style.
type span struct {
	style style
	text  string
}

// line is a line of the output. Its width is the number of its code points, which is
// right for all that goipip says itself.
type line []span

func width(s string) int { return utf8.RuneCountInString(s) }

func (l line) width() int {
	n := 0
	for _, s := range l {
		n += width(s.text)
	}
	return n
}

// cut returns l in at most n columns; 0 is no limit.
func (l line) cut(n int) line {
	if n <= 0 || l.width() <= n {
		return l
	}
	var out line
	left := n - 1 // for the ellipsis
	for _, s := range l {
		if w := width(s.text); w <= left {
			out, left = append(out, s), left-w
			continue
		}
		return append(out, span{s.style, string([]rune(s.text)[:left]) + "…"})
	}
	return out
}

// render returns the line as text.
func (l line) render(colour bool) string {
	var b strings.Builder
	for _, s := range l {
		text := Printable(s.text)
		if colour && s.style != plain {
			text = "\x1b[" + string(s.style) + "m" + text + "\x1b[0m"
		}
		b.WriteString(text)
	}
	return strings.TrimRight(b.String(), " ")
}

// Printable returns text with ? for control characters, which a terminal would obey. The kernel permits escape
// characters in the names of links (dev_valid_name in net/core/dev.c), and paths may have them too.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// wrap breaks text at spaces into lines of at most n columns, of more only for words
// that are longer. With n = 0 there is one line.
func wrap(text string, n int) []string {
	if n <= 0 || width(text) <= n {
		return []string{text}
	}
	var lines []string
	var current string
	for word := range strings.FieldsSeq(text) {
		switch {
		case current == "":
			current = word
		case width(current)+1+width(word) <= n:
			current += " " + word
		default:
			lines = append(lines, current)
			current = word
		}
	}
	return append(lines, current)
}

// hanging returns text after lead, wrapped to v's width and indented as deep as the lead
// is wide. Where that leaves no room, the text is below the lead.
func (v View) hanging(lead line, st style, text string) []line {
	const room, shallow = 24, 6
	indent := lead.width()
	n := v.Width
	var out []line
	if n > 0 && n-indent < room {
		out, lead, indent = append(out, lead), nil, shallow
	}
	if n > 0 {
		n = max(n-indent, 1)
	}
	for _, part := range wrap(text, n) {
		if lead == nil {
			lead = line{{plain, strings.Repeat(" ", indent)}}
		}
		out = append(out, append(lead, span{st, part}))
		lead = nil
	}
	return out
}

// alignment is that of a column.
type alignment bool

// The alignments.
const (
	left  alignment = false
	right alignment = true
)

// pad fills s to n columns.
func pad(s string, n int, a alignment) string {
	fill := strings.Repeat(" ", max(0, n-width(s)))
	if a == right {
		return fill + s
	}
	return s + fill
}

// column is one column of a table, with its head as the first cell.
type column struct {
	align alignment
	cells []span
}

func (c column) width() int {
	n := 0
	for _, s := range c.cells {
		n = max(n, width(s.text))
	}
	return n
}

// total returns the width of a table.
func total(columns []column, gap string) int {
	n := (len(columns) - 1) * width(gap)
	for _, c := range columns {
		n += c.width()
	}
	return n
}

// align returns the columns beside each other, with gap between them. Where they are too
// wide for v, the last ones are left out, but for the first keep ones.
func (v View) align(keep int, gap string, columns []column) []line {
	for v.Width > 0 && len(columns) > keep && total(columns, gap) > v.Width {
		columns = columns[:len(columns)-1]
	}
	lines := make([]line, len(columns[0].cells))
	for i, c := range columns {
		w := c.width()
		for row, s := range c.cells {
			if i > 0 {
				lines[row] = append(lines[row], span{plain, gap})
			}
			lines[row] = append(lines[row], c.pad(s, w)...)
		}
	}
	return lines
}

// pad fills the cell s outside its style.
func (c column) pad(s span, w int) line {
	fill := span{plain, strings.Repeat(" ", w-width(s.text))}
	if c.align == right {
		return line{fill, s}
	}
	return line{s, fill}
}
