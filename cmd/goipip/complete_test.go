//go:build linux

package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// completions returns what the shell is offered for the last of words.
func completions(t *testing.T, words ...string) []string {
	t.Helper()
	var o options
	cmd := newCommand(&o)
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(new(bytes.Buffer))
	cmd.SetArgs(doubleDashes(append([]string{"__complete"}, words...)))
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	return lines[:len(lines)-1] // the last one is a directive
}

func TestComplete(t *testing.T) {
	links := linkNames()
	if !slices.Contains(links, "lo") {
		t.Fatalf("links %q", links)
	}
	for line, want := range map[string][]string{
		"tunnel add x ":           {"mode", "remote", "local", "ttl", "tos", "pmtudisc", "nopmtudisc", "dev"},
		"tunnel add x mode ":      {"ipip"},
		"tunnel add x ttl 5 dev ": links,
		"tunnel change x remote ": {"any"},
		"link add x mtu ":         {},
		"link add x type ":        {"ipip"},
		"-dev ":                   links,
		"-tx ":                    {"auto", "raw", "packet"},
		"run --config ":           {"toml"},
	} {
		if got := completions(t, strings.Split(line, " ")...); !slices.Equal(got, want) {
			t.Errorf("goipip %s: %q, want %q", line, got, want)
		}
	}
	// A word that was given is offered no more.
	if got := completions(t, "tunnel", "add", "x", "remote", "192.0.2.1", ""); slices.Contains(got, "remote") || !slices.Contains(got, "local") {
		t.Errorf("after remote: %q", got)
	}
}

// What the shell is offered for a flag, the flag takes.
func TestComplete_FlagsTakeIt(t *testing.T) {
	newCommand(new(options)).Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "dev" || f.Value.Type() == "bool" {
			return
		}
		for _, word := range completions(t, "--"+f.Name, "") {
			if err := f.Value.Set(word); err != nil {
				t.Errorf("--%s %s: %v", f.Name, word, err)
			}
		}
	})
}
