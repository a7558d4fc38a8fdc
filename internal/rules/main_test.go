package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const doc = `
| | rule |
|---|---|
| O1 | **The look**: the link looks right |
| T7 | **Too long**: and DF | ` + "`too_big`" + ` |
| R5 | **ECN**: see the table |

| inner \ outer | Not-ECT |
|---|---|
| ECT(0) | ECT(0) |
`

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file.md")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const allPass = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestO1_Link"}
{"Action":"output","Package":"p","Test":"TestO1_Link","Output":"=== RUN   TestO1_Link\n"}
{"Action":"output","Package":"p","Test":"TestO1_Link","Output":"nobody needs this\n"}
{"Action":"pass","Package":"p","Test":"TestO1_Link"}
{"Action":"pass","Package":"p","Test":"TestOracle/T7/more"}
{"Action":"pass","Package":"p","Test":"TestT7_R5_Both"}
{"Action":"pass","Package":"p","Test":"TestOracle"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`

func TestResults(t *testing.T) {
	for name, c := range map[string]struct {
		events string
		ok     bool
		table  string
		prints []string // and nothing else
	}{
		"all pass": {
			allPass, true,
			"| O1 | The look | ✓ |\n| T7 | Too long | ✓ |\n| R5 | ECN | ✓ |\n",
			[]string{"ok  \tp\t0.1s\n"},
		},
		"no test": {
			strings.ReplaceAll(allPass, "T7_R5", "T7_"), false,
			"| O1 | The look | ✓ |\n| T7 | Too long | ✓ |\n| R5 | ECN | **no test** |\n",
			[]string{"ok  \tp\t0.1s\n"},
		},
		"one fails": {
			strings.ReplaceAll(allPass, `"pass","Package":"p","Test":"TestO1_Link"`, `"fail","Package":"p","Test":"TestO1_Link"`), false,
			"| O1 | The look | **1 of 1 fail** |\n| T7 | Too long | ✓ |\n| R5 | ECN | ✓ |\n",
			[]string{"nobody needs this\n", "ok  \tp\t0.1s\n"},
		},
		"one is skipped": {
			strings.ReplaceAll(allPass, `"pass","Package":"p","Test":"TestO1_Link"`, `"skip","Package":"p","Test":"TestO1_Link"`), true,
			"| O1 | The look | skipped |\n| T7 | Too long | ✓ |\n| R5 | ECN | ✓ |\n",
			[]string{"ok  \tp\t0.1s\n"},
		},
		"another package fails": {
			allPass + `{"Action":"start","Package":"q"}
{"Action":"output","Package":"q","Output":"panic: q\n"}
{"Action":"fail","Package":"q"}`, false,
			"| O1 | The look | ✓ |\n| T7 | Too long | ✓ |\n| R5 | ECN | ✓ |\n",
			[]string{"ok  \tp\t0.1s\n", "panic: q\n"},
		},
		"another package does not build": {
			allPass + `{"Action":"build-output","ImportPath":"q","Output":"q.go:1: no\n"}
{"Action":"build-fail","ImportPath":"q"}`, false,
			"| O1 | The look | ✓ |\n| T7 | Too long | ✓ |\n| R5 | ECN | ✓ |\n",
			[]string{"ok  \tp\t0.1s\n", "q.go:1: no\n"},
		},
		"another package does not end": {
			allPass + `{"Action":"start","Package":"q"}`, false,
			"| O1 | The look | ✓ |\n| T7 | Too long | ✓ |\n| R5 | ECN | ✓ |\n",
			[]string{"ok  \tp\t0.1s\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rules, err := readRules(write(t, doc))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			r := newResults(&out)
			if err := r.read(strings.NewReader(c.events)); err != nil {
				t.Fatal(err)
			}
			rows, ok := table(rules, r.tallies)
			if ok = ok && r.ok(); ok != c.ok {
				t.Errorf("ok = %v, want %v: %s", ok, c.ok, r.summary())
			}
			if diff := cmp.Diff(head+c.table, rows); diff != "" {
				t.Errorf("table (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(strings.Join(c.prints, ""), out.String()); diff != "" {
				t.Errorf("printed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPutInto(t *testing.T) {
	path := write(t, "before\n"+beginMark+"old\n"+endMark+"after\n")
	for range 2 {
		if err := putInto(path, "| new |\n"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if want := "before\n" + beginMark + "| new |\n" + endMark + "after\n"; err != nil || string(got) != want {
		t.Errorf("%v, the file is %q, want %q", err, got, want)
	}
	if putInto(write(t, "no marks"), "| new |\n") == nil {
		t.Error("no error without marks")
	}
}

// The README shows the table of docs/rules.md, as it is when all tests pass.
func TestREADME(t *testing.T) {
	rules, err := readRules("../../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	passed := map[string]tally{}
	for _, r := range rules {
		if passed[r.id].passed > 0 {
			t.Errorf("%s is there twice", r.id)
		}
		passed[r.id] = tally{passed: 1}
	}
	want, _ := table(rules, passed)
	_, rest, _ := strings.Cut(string(readme), beginMark)
	got, _, _ := strings.Cut(rest, endMark)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table in README.md, which make readme makes (-want +got):\n%s", diff)
	}
}
