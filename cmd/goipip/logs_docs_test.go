//go:build linux

package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// docs/logs.md has all keys of the log, and no others.
func TestLogDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n| key | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	documented := map[string]bool{}
	for _, key := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(table, -1) {
		documented[key[1]] = true
	}
	used := map[string]bool{}
	for _, dir := range []string{".", "../../internal/daemon", "../../internal/engine", "../../internal/logqueue",
		"../../internal/stats", "../../internal/tunnel", "../../internal/underlay"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				logKeys(t, file, used)
			}
		}
	}
	for key := range used {
		if !documented[key] {
			t.Errorf("docs/logs.md lacks the key %q", key)
		}
	}
	for key := range documented {
		if !used[key] {
			t.Errorf("docs/logs.md has the key %q, which no line has", key)
		}
	}
}

// logKeys adds the keys of the log lines in a file: the strings in the places of keys in calls of
// a logger, in lists of arguments for one, and in attributes.
func logKeys(t *testing.T, file string, keys map[string]bool) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	addPairs := func(args []ast.Expr) {
		for i := 0; i < len(args); i += 2 {
			if lit, ok := args[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				key, _ := strconv.Unquote(lit.Value)
				keys[key] = true
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if list, ok := n.Type.(*ast.ArrayType); ok && name(list.Elt) == "any" {
				addPairs(n.Elts)
			}
		case *ast.CallExpr:
			switch fun := n.Fun.(type) {
			case *ast.Ident:
				if fun.Name == "append" && len(n.Args) == 3 && name(n.Args[0]) == "args" {
					addPairs(n.Args[1:])
				}
			case *ast.SelectorExpr:
				logger := name(fun.X)
				switch {
				case logger == "slog" && slices.Contains([]string{"String", "Int", "Uint64"}, fun.Sel.Name):
					addPairs(n.Args[:1])
				case logger == "log" && fun.Sel.Name == "With":
					addPairs(n.Args)
				case logger == "log" && slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, fun.Sel.Name):
					addPairs(n.Args[1:])
				}
			}
		}
		return true
	})
}

// name returns the last name of an expression such as w.log.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
