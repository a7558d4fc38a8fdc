package config

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a TOML file as a tree in which each key and value has its position.
type document struct {
	name  string
	data  []byte
	lines []int // offsets of the lines' first bytes
	root  *node
	errs  []*Error
}

// node is a value with the key that it belongs to, or an element of a list.
type node struct {
	parent *node
	name   string // the last part of the key; of an element, its index in brackets
	keyAt  int    // offset of name in the file; of an element, that of its value
	at     int    // offset of the value; of a table, that of its key

	kind  unstable.Kind // Table, Array, or that of a scalar
	text  string        // of a scalar; a string's is without quotes
	kids  []*node       // of a table or list, in the order of the file
	known map[string]*node

	list  bool // an Array made of headers [[…]]
	given bool // by a value or header, so that a second one is an error
	twice bool // is that second one
	cut   bool // the file is not TOML any more somewhere in this table
}

// parse reads what is TOML in data. What is not is in the document's errors.
func parse(name string, data []byte) *document {
	d := &document{name: name, data: data, lines: []int{0}, root: &node{kind: unstable.Table}}
	for i, c := range data {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	var p unstable.Parser
	p.Reset(data)
	table := d.root
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.header(e)
		case unstable.KeyValue:
			d.keyValue(table, e)
		}
	}
	var syntax *unstable.ParserError
	if errors.As(p.Error(), &syntax) {
		d.fail(int(p.Range(syntax.Highlight).Offset), "", "%s", syntax.Message)
		for n := table; n != nil; n = n.parent {
			n.cut = true
		}
	}
	return d
}

// check adds what the decoder finds and the parser does not, such as a date that
// does not exist or an inline table that a header extends. It comes last: an error in
// the same line is about the same thing, and says more.
func (d *document) check() {
	var all map[string]any
	err := toml.Unmarshal(d.data, &all)
	if err == nil {
		return
	}
	at := 0
	if wrong := new(toml.DecodeError); errors.As(err, &wrong) {
		line, column := wrong.Position()
		at = d.lines[line-1] + column - 1
		if slices.ContainsFunc(d.errs, func(e *Error) bool { return e.Line == line }) {
			return
		}
	}
	d.fail(at, "", "%s", strings.TrimPrefix(err.Error(), "toml: "))
}

// header returns the table that the header e begins.
func (d *document) header(e *unstable.Node) *node {
	n, last, at := d.descend(d.root, e.Key())
	old := n.known[last]
	switch {
	case e.Kind == unstable.ArrayTable && old == nil:
		old = n.add(last, at)
		old.kind, old.list, old.given = unstable.Array, true, true
		return old.element(at)
	case e.Kind == unstable.ArrayTable && old.list:
		return old.element(at)
	case e.Kind == unstable.Table && old == nil:
		old = n.add(last, at)
	case old.given || e.Kind == unstable.ArrayTable:
		old = d.repeat(n, old, at)
	}
	old.keyAt, old.at, old.given = at, at, true
	return old
}

// keyValue adds key = value to table.
func (d *document) keyValue(table *node, e *unstable.Node) {
	n, last, at := d.descend(table, e.Key())
	kid := n.known[last]
	if kid != nil {
		kid = d.repeat(n, kid, at)
	} else {
		kid = n.add(last, at)
	}
	kid.given = true
	d.value(kid, e.Value(), d.valueAt(e))
}

// valueAt is the offset of the value in key = value: a list does not know its own.
func (d *document) valueAt(e *unstable.Node) int {
	at := 0
	for k := e.Key(); k.Next(); {
		at = int(k.Node().Raw.Offset + k.Node().Raw.Length)
	}
	for strings.IndexByte(" \t=", d.data[at]) >= 0 {
		at++
	}
	return at
}

// value sets n to what v says, which stands at an offset that v may not know itself.
func (d *document) value(n *node, v *unstable.Node, at int) {
	n.kind, n.at, n.text = v.Kind, at, string(v.Data)
	switch v.Kind {
	case unstable.Array:
		for i := v.Children(); i.Next(); {
			kid := n.element(at)
			if raw := i.Node().Raw; raw.Length > 0 {
				kid.keyAt = int(raw.Offset)
			}
			d.value(kid, i.Node(), kid.keyAt)
		}
	case unstable.InlineTable:
		n.kind, n.text = unstable.Table, ""
		for i := v.Children(); i.Next(); {
			d.keyValue(n, i.Node())
		}
	}
}

// descend follows all parts of a key but the last from n, and makes the tables that
// it does not find. It returns the table, the last part and its offset.
func (d *document) descend(n *node, key unstable.Iterator) (table *node, last string, at int) {
	for more := key.Next(); more; {
		part := key.Node()
		last, at = string(part.Data), int(part.Raw.Offset)
		if more = key.Next(); more {
			n = d.table(n, last, at)
		}
	}
	return n, last, at
}

// table returns the table name of n: of a list of headers, the last one.
func (d *document) table(n *node, name string, at int) *node {
	kid := n.known[name]
	switch {
	case kid == nil:
		return n.add(name, at)
	case kid.list:
		return kid.kids[len(kid.kids)-1]
	case kid.kind != unstable.Table:
		return d.repeat(n, kid, at)
	}
	return kid
}

// repeat makes a node beside old, which has the same key, and says so.
func (d *document) repeat(n, old *node, at int) *node {
	kid := n.add(old.name, at)
	kid.twice = true
	n.known[old.name] = old
	d.fail(at, kid.path(), "%s", given(d.where(old.keyAt)))
	return kid
}

// given is the problem of a key that stands elsewhere too.
func given(where string) string { return "given twice, first at " + where + ": leave one out" }

func (n *node) add(name string, at int) *node {
	kid := &node{parent: n, name: name, keyAt: at, at: at, kind: unstable.Table}
	n.kids = append(n.kids, kid)
	if n.known == nil {
		n.known = map[string]*node{}
	}
	n.known[name] = kid
	return kid
}

func (n *node) element(at int) *node {
	return n.add(fmt.Sprintf("[%d]", len(n.kids)), at)
}

// path is the key of n with all its parts, quoted where TOML needs that.
func (n *node) path() string {
	var parts []string
	for ; n.parent != nil; n = n.parent {
		switch {
		case n.parent.kind == unstable.Array:
			parts = append(parts, n.name)
		case n.name == "" || strings.ContainsFunc(n.name, notBare):
			parts = append(parts, fmt.Sprintf("%q", n.name), ".")
		default:
			parts = append(parts, n.name, ".")
		}
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		if b.Len() > 0 || parts[i] != "." {
			b.WriteString(parts[i])
		}
	}
	return b.String()
}

func notBare(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

// position is the line and the column, from 1, of an offset.
func (d *document) position(at int) (line, column int) {
	line = sort.SearchInts(d.lines, at+1)
	return line, at - d.lines[line-1] + 1
}

// where is the position of an offset as FILE:LINE.
func (d *document) where(at int) string {
	line, _ := d.position(at)
	return fmt.Sprintf("%s:%d", d.name, line)
}

func (d *document) fail(at int, key, format string, args ...any) {
	e := &Error{File: d.name, Key: key, Problem: fmt.Sprintf(format, args...)}
	e.Line, e.Column = d.position(at)
	d.errs = append(d.errs, e)
}

// find returns the value below n by a path such as routes[0].to; nil if there is none.
func (n *node) find(path string) *node {
	for _, name := range strings.Split(strings.ReplaceAll(path, "[", ".["), ".") {
		if n = n.known[name]; n == nil {
			return nil
		}
	}
	return n
}

// said reports whether there is an error about a key, or one below it.
func (d *document) said(key string) bool {
	return slices.ContainsFunc(d.errs, func(e *Error) bool { return e.Key == key || strings.HasPrefix(e.Key, key+".") })
}
