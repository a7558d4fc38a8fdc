//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
	"goipip/internal/show"
	"goipip/internal/tunnel"
)

// showEnv makes this test program goipip, with a show that fetches what the file of this
// name has: statuses as JSON, "hang", or an error.
const showEnv = "GOIPIP_TEST_SHOW"

// hanging is after the name of a file that says that a fetch hangs.
const hanging = ".hanging"

func init() {
	path := os.Getenv(showEnv)
	if path == "" {
		return
	}
	var o options
	cmd := newCommand(&o)
	for _, c := range cmd.Commands() {
		if c.Name() == "show" {
			cmd.RemoveCommand(c)
		}
	}
	cmd.AddCommand(newShowCommand(func(ctx context.Context) ([]control.Status, error) { return fetchFile(ctx, path) }))
	os.Exit(o.execute(cmd, os.Args[1:]))
}

func fetchFile(ctx context.Context, path string) (all []control.Status, err error) {
	text, err := os.ReadFile(path)
	switch {
	case err != nil:
		return nil, err
	case string(text) == "hang":
		if err := os.WriteFile(path+hanging, nil, 0o600); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return nil, ctx.Err()
	case text[0] != '[':
		return nil, errors.New(string(text))
	}
	return all, json.Unmarshal(text, &all)
}

// shown is what goipip show fetches, and can change while it runs.
type shown struct{ path string }

func newShown(t *testing.T, names ...string) shown {
	s := shown{filepath.Join(t.TempDir(), "statuses")}
	s.tunnels(t, names...)
	return s
}

// set replaces it at once.
func (s shown) set(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(s.path+"~", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path+"~", s.path); err != nil {
		t.Fatal(err)
	}
}

// tunnels makes it a process with tunnels of these names.
func (s shown) tunnels(t *testing.T, names ...string) {
	t.Helper()
	text, err := json.Marshal(tunnelsNamed(names...))
	if err != nil {
		t.Fatal(err)
	}
	s.set(t, string(text))
}

func tunnelsNamed(names ...string) []control.Status {
	s := control.Status{Process: control.Process{PID: 4242, Role: control.RoleRun, Started: time.Now(), Workers: 1}}
	for _, name := range names {
		s.Tunnels = append(s.Tunnels, control.TunnelStatus{
			Config: tunnel.Config{Name: name, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"), Queues: 1},
			Up:     true, Since: time.Now(),
			TX: control.Traffic{Drops: map[string]uint64{"too_deep": 3}},
		})
	}
	return []control.Status{s}
}

// command is goipip with args.
func (s shown) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(labtest.Context(t), self, args...)
	cmd.Env = append(os.Environ(), showEnv+"="+s.path, "TERM=xterm", "NO_COLOR=")
	return cmd
}

// run runs goipip with args to its end.
func (s shown) run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := s.command(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestShow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fetched string // "" for tun01 and tun02
		args    string
		status  int
		stdout  string // that it has
		stderr  string // all of it
	}{
		"several":       {"", "show", 0, "NAME   STATE  LOCAL → REMOTE", ""},
		"one":           {"", "show tun02", 0, "tun02: up\n", ""},
		"a reason":      {"", "show tun02", 0, "    too_deep  3  the packet is already inside four tunnels of this host\n", ""},
		"JSON":          {"", "show -json tun02", 0, "[\n  {\n    \"process\": {\n      \"pid\": 4242,", ""},
		"unknown":       {"", "show tun03", 1, "", "goipip: no tunnel \"tun03\": there are tun01, tun02\n"},
		"unknown, JSON": {"", "show tun03 --json", 1, "", "goipip: no tunnel \"tun03\": there are tun01, tun02\n"},
		"unknown watch": {"", "show tun03 --watch", 1, "", "goipip: no tunnel \"tun03\": there are tun01, tun02\n"},
		"two names":     {"", "show tun01 tun02", 2, "", "goipip: show takes one NAME, and not tun01 tun02\nTry 'goipip --help'.\n"},
		"none":          {"[]", "show", 0, "", show.NoTunnels + "\n"},
		"none of NAME":  {"[]", "show tun01", 1, "", "goipip: no tunnel \"tun01\": there are none\n"},
		"none, JSON":    {"[]", "show --json", 0, "[]\n", ""},
		"failure":       {"a failure", "show", 1, "", "goipip: a failure\n"},
		"failure, JSON": {"a failure", "show --json", 1, "", "goipip: a failure\n"},
		"failure watch": {"a failure", "show --watch", 1, "", "goipip: a failure\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShown(t, "tun01", "tun02")
			if c.fetched != "" {
				s.set(t, c.fetched)
			}
			status, stdout, stderr := s.run(t, strings.Fields(c.args)...)
			if status != c.status || !strings.Contains(stdout, c.stdout) || (c.stdout == "") != (stdout == "") || stderr != c.stderr {
				t.Errorf("status %d, stdout\n%s\nstderr\n%s\nwant %d,\n%s\nand\n%s", status, stdout, stderr, c.status, c.stdout, c.stderr)
			}
			if strings.Contains(stdout, "\x1b") {
				t.Errorf("control sequences in a pipe: %q", stdout)
			}
		})
	}
}

// TestShowWritesAreChecked has a full disk, and a reader that has gone.
func TestShowWritesAreChecked(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	reader, closed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	defer closed.Close()
	s := newShown(t, "tun01", "tun02")
	for _, args := range []string{"show", "show tun01", "show --json", "show --watch", "show --watch --json"} {
		for out, want := range map[*os.File]struct {
			status int
			stderr string
		}{
			full:   {1, "goipip: write /dev/stdout: no space left on device\n"},
			closed: {141, ""},
		} {
			var stderr bytes.Buffer
			cmd := s.command(t, strings.Fields(args)...)
			cmd.Stdout, cmd.Stderr = out, &stderr
			cmd.Run()
			if status := cmd.ProcessState.ExitCode(); status != want.status || stderr.String() != want.stderr {
				t.Errorf("goipip %s > %s: status %d, stderr %q", args, out.Name(), status, stderr.String())
			}
		}
	}
}

// TestShowCompletesNames asks as a shell does.
func TestShowCompletesNames(t *testing.T) {
	t.Parallel()
	s := newShown(t, "tun10", "tun9", "other")
	if _, stdout, _ := s.run(t, "__complete", "show", "tun"); stdout != "tun9\t192.0.2.1 → 192.0.2.2\ntun10\t192.0.2.1 → 192.0.2.2\n:4\n" {
		t.Errorf("got %q", stdout)
	}
	if _, stdout, _ := s.run(t, "__complete", "show", "tun9", ""); stdout != ":4\n" {
		t.Errorf("after a name: %q", stdout)
	}
	if _, stdout, _ := s.run(t, "__complete", "show", "--w"); !strings.HasPrefix(stdout, "--watch\t") {
		t.Errorf("flags: %q", stdout)
	}
	for _, failure := range []string{"a failure", "hang"} {
		s.set(t, failure)
		if status, stdout, _ := s.run(t, "__complete", "show", ""); status != 0 || stdout != ":4\n" {
			t.Errorf("%s: status %d, %q", failure, status, stdout)
		}
	}
}

func TestWantColour(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want bool
	}{
		{map[string]string{"TERM": "xterm"}, true},
		{map[string]string{"TERM": "linux", "NO_COLOR": ""}, true},
		{map[string]string{"TERM": "xterm", "NO_COLOR": "0"}, false},
		{map[string]string{"TERM": "dumb"}, false},
		{nil, false},
	} {
		if got := wantColour(func(name string) string { return c.env[name] }); got != c.want {
			t.Errorf("%v: %v", c.env, got)
		}
	}
}
