package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const doc = `
| | rule |
|---|---|
| O1 | the link looks right |
| T7 | too long, and DF | ` + "`too_big`" + ` |
| T8 | ○ soft errors |
| R5 | ECN |
`

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.md")
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	const pass = `{"Action":"run","Package":"p","Test":"TestO1_Link"}
{"Action":"pass","Package":"p","Test":"TestO1_Link"}
{"Action":"pass","Package":"p","Test":"TestOracle/T7"}
{"Action":"pass","Package":"p","Test":"TestT7_PathMTU/local"}
{"Action":"pass","Package":"p","Test":"TestR5_ECN"}
{"Action":"pass","Package":"p"}
`
	for name, c := range map[string]struct {
		events string
		ok     bool
		want   []string
	}{
		"all pass":    {pass, true, []string{"| O1 | 1 | pass |", "| T7 | 2 | pass |", "| T8 | 0 | not yet |", "| R5 | 1 | pass |"}},
		"no test":     {strings.ReplaceAll(pass, "TestR5_ECN", "TestOther"), false, []string{"| R5 | 0 | **no test** |"}},
		"one fails":   {pass + `{"Action":"fail","Package":"p","Test":"TestT7_More"}`, false, []string{"| T7 | 3 | **fail** |", "failed: p TestT7_More"}},
		"other fails": {pass + `{"Action":"fail","Package":"q"}`, false, []string{"failed: q"}},
	} {
		var out strings.Builder
		ok, err := run(path, strings.NewReader(c.events), &out)
		if err != nil {
			t.Fatal(err)
		}
		if ok != c.ok {
			t.Errorf("%s: ok = %v, want %v", name, ok, c.ok)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, &out)
			}
		}
	}
}
