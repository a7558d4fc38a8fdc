//go:build linux

package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var updateMan = flag.Bool("update", false, "write the man pages")

// queues is the default of --queues, which goes by the machine's cores.
var queues = regexp.MustCompile(`--queues\\fP=\d+`)

// TestManPages holds docs/man and the commands together. With -update it writes the pages.
func TestManPages(t *testing.T) {
	const committed = "../../docs/man"
	dir := t.TempDir()
	if *updateMan {
		dir = committed
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := newCommand(new(options))
	cmd.DisableAutoGenTag = true
	date := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	if err := doc.GenManTree(cmd, &doc.GenManHeader{Section: "8", Source: "goipip", Manual: "goipip", Date: &date}, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	page := md2man.Render([]byte(manualOf(string(text), date)))
	if err := os.WriteFile(filepath.Join(dir, "goipip.toml.5"), page, 0o644); err != nil {
		t.Fatal(err)
	}
	pages := func(dir string) map[string]string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = queues.ReplaceAllString(string(text), "--queues")
		}
		return all
	}
	want, got := pages(dir), pages(committed)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("docs/man/%s is not as the commands, or docs/config.md, are: go test ./cmd/goipip -run TestManPages -update", name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("docs/man/%s is of no command", name)
	}
}

// The README's table has every command.
func TestREADMEHasCommands(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if c.Hidden || c.Name() == "help" {
				continue
			}
			if cmd.HasParent() { // the words of ip stand in one line
				words := map[string]string{"delete": "del"}
				name := c.Name()
				if short, ok := words[name]; ok {
					name = short
				}
				line := lineWith(string(readme), "| `goipip "+cmd.Name()+" {")
				if cmd.Name() != "completion" && !strings.Contains(line, name) {
					t.Errorf("README.md has no %s %s in %q", cmd.Name(), name, line)
				}
			} else if !strings.Contains(string(readme), "| `goipip "+c.Name()) {
				t.Errorf("README.md has no %s", c.CommandPath())
			}
			check(c)
		}
	}
	cmd := newCommand(new(options))
	cmd.InitDefaultCompletionCmd()
	check(cmd)
}

func lineWith(text, want string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, want) {
			return line
		}
	}
	return ""
}
