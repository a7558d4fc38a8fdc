//go:build linux

package deploy_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"goipip/internal/netlab/labtest"

	"go.yaml.in/yaml/v3"
)

// documents reads all documents of a YAML file, in which no key stands twice.
func documents(t *testing.T, path string) (all []map[string]any) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(read(t, path)))
	for {
		var v map[string]any
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, v)
	}
}

// at returns what a path of keys leads to: at(v, "spec", "template").
func at[T any](t *testing.T, v any, keys ...string) T {
	t.Helper()
	for _, key := range keys {
		m, ok := v.(map[string]any)
		if !ok || m[key] == nil {
			t.Fatalf("no %s of %v", key, keys)
		}
		v = m[key]
	}
	got, ok := v.(T)
	if !ok {
		t.Fatalf("%v is a %T", keys, v)
	}
	return got
}

// words are the strings of a list.
func words(t *testing.T, v any, keys ...string) (all []string) {
	t.Helper()
	for _, w := range at[[]any](t, v, keys...) {
		all = append(all, at[string](t, w))
	}
	return all
}

// exists fails the test unless goipip has the command and the options.
func exists(t *testing.T, args []string) {
	t.Helper()
	out := run(t, "", labtest.Build(t, "goipip/cmd/goipip"), args[0], "--help")
	if !strings.Contains(out, "\n  goipip "+args[0]) {
		t.Errorf("goipip has no command %s:\n%s", args[0], out)
	}
	for _, arg := range args[1:] {
		if strings.HasPrefix(arg, "-") && !strings.Contains(out, arg+" ") {
			t.Errorf("goipip %s has no %s", args[0], arg)
		}
	}
}

func TestCompose(t *testing.T) {
	service := at[map[string]any](t, documents(t, "deploy/compose.yaml")[0], "services", "goipip")
	exists(t, words(t, service, "command"))
	exists(t, words(t, service, "healthcheck", "test")[2:])
	if _, err := os.Stat(filepath.Join(root, "deploy", at[string](t, service, "build", "context"), at[string](t, service, "build", "dockerfile"))); err != nil {
		t.Error(err)
	}
	if drop, add := words(t, service, "cap_drop"), words(t, service, "cap_add"); !slices.Equal(drop, []string{"ALL"}) || !slices.Equal(add, []string{"NET_ADMIN", "NET_RAW"}) || !at[bool](t, service, "read_only") {
		t.Errorf("capabilities %q of %q", add, drop)
	}
}

func TestKubernetes(t *testing.T) {
	kinds := map[string]map[string]any{}
	for _, d := range documents(t, "deploy/kubernetes.yaml") {
		kinds[at[string](t, d, "kind")] = d
	}
	config := at[map[string]any](t, kinds["ConfigMap"], "data")
	dir := t.TempDir()
	for name, text := range config {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text.(string)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "", labtest.Build(t, "goipip/cmd/goipip"), "check", "--config", dir)

	spec := at[map[string]any](t, kinds["DaemonSet"], "spec", "template", "spec")
	container := at[map[string]any](t, at[[]any](t, spec, "containers")[0])
	exists(t, words(t, container, "args"))
	exists(t, words(t, container, "livenessProbe", "exec", "command")[1:])
	if add := words(t, container, "securityContext", "capabilities", "add"); !slices.Equal(add, []string{"NET_ADMIN", "NET_RAW"}) || at[bool](t, container, "securityContext", "allowPrivilegeEscalation") {
		t.Errorf("capabilities %q", add)
	}
	names := func(list []any) (names []string) {
		for _, v := range list {
			names = append(names, at[string](t, v, "name"))
		}
		return names
	}
	if mounts, volumes := names(at[[]any](t, container, "volumeMounts")), names(at[[]any](t, spec, "volumes")); !slices.Equal(mounts, volumes) {
		t.Errorf("mounts %q of volumes %q", mounts, volumes)
	}
	labels := at[map[string]any](t, kinds["DaemonSet"], "spec", "template", "metadata", "labels")
	for key, value := range at[map[string]any](t, kinds["DaemonSet"], "spec", "selector", "matchLabels") {
		if labels[key] != value {
			t.Errorf("the selector wants %s: %v", key, value)
		}
	}
}

// What workflows run, make has.
func TestWorkflows(t *testing.T) {
	targets := regexp.MustCompile(`(?m)^([a-z]+):`).FindAllStringSubmatch(read(t, "Makefile"), -1)
	for _, path := range []string{".github/workflows/ci.yml", ".github/workflows/release.yml"} {
		documents(t, path)
		text := regexp.MustCompile(`#.*`).ReplaceAllString(read(t, path), "")
		for _, target := range regexp.MustCompile(`\bmake ([a-z]+)`).FindAllStringSubmatch(text, -1) {
			if !slices.ContainsFunc(targets, func(have []string) bool { return have[1] == target[1] }) {
				t.Errorf("%s: there is no make %s", path, target[1])
			}
		}
	}
	t.Run("Actionlint", func(t *testing.T) {
		labtest.Need(t, "actionlint")
		run(t, root, "go", "run", "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12")
	})
}
