//go:build linux

package main_test

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	r := goipip(t, "version")
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("goipip version: %+v", r)
	}
	for _, want := range []string{"goipip  ", "commit  ", "go      " + runtime.Version() + " linux/" + runtime.GOARCH + "\n", "kernel  Linux ", "Linux 6.6 for --fast-path"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("goipip version has no %q:\n%s", want, r.stdout)
		}
	}
	var v struct {
		Version, Go, Kernel string
		Needs               []struct{ For, Kernel string }
	}
	r = goipip(t, "version", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || v.Version == "" || v.Go != runtime.Version() || v.Kernel == "" || len(v.Needs) == 0 {
		t.Errorf("goipip version --json: %+v, %v", v, err)
	}
}
