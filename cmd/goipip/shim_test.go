//go:build linux

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The ip in deploy/ sends what is about ipip tunnels to goipip, and all else to the next ip, word for word.
func TestShim(t *testing.T) {
	shim, err := filepath.Abs("../../deploy/ip")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"ip", "goipip"} {
		script := "#!/bin/sh\nprintf '%s' " + name + "\nprintf ' <%s>' \"$@\"\nexit 7\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The directory of the shim stands in PATH twice, once by another name.
	again := filepath.Join(t.TempDir(), "again")
	if err := os.Symlink(filepath.Dir(shim), again); err != nil {
		t.Fatal(err)
	}
	path := filepath.Dir(shim) + ":" + again + ":" + dir + ":" + os.Getenv("PATH")
	run := func(t *testing.T, path string, args ...string) (out string, status int) {
		t.Helper()
		cmd := exec.Command(shim, args...)
		cmd.Env = append(os.Environ(), "PATH="+path)
		text, _ := cmd.CombinedOutput()
		return string(text), cmd.ProcessState.ExitCode()
	}
	for program, lines := range map[string][][]string{
		"goipip": {
			{"tunnel"}, {"tunnel", "show"}, {"t", "a", "x", "mode", "ipip"}, {"-s", "tunl"}, {"-d", "-o", "-j", "tun", "ls"},
			{"-4", "tunnel"}, {"-f", "inet", "tunnel"}, {"-n", "link", "tunnel", "add", "a b", "mode", "ip/ip"}, {"-force", "tunnel"},
			{"tunnel", "change", "x", "ttl", "5"}, {"tunnel", "del", "x"}, {"tunnel", "add", "x", "mode"}, {"tunnel", "add", "gre1", "mode", "ipip"}, {"tunnel", "add", "x", "dev", "gre1"},
			{"link", "add", "x", "type", "ipip", "remote", "192.0.2.1"}, {"l", "a", "name", "type", "ty", "ipip"},
			{"link", "change", "x", "type", "ipip"}, {"link", "set", "x", "type", "ipip", "ttl", "5"}, {"link", "del", "x", "type", "ipip"},
			{"-n", "ns", "link", "add", "x", "mtu", "1400", "type", "ipip"},
		},
		"ip": {
			{}, {"addr"}, {"-V"}, {"link"}, {"link", "show", "type", "ipip"}, {"link", "set", "x", "up"}, {"link", "del", "x"},
			{"link", "add", "x", "type", "veth", "peer", "name", "ipip"}, {"link", "add", "x", "type", "veth", "peer", "name", "type", "ipip"},
			{"link", "add", "x", "alias", "type", "ipip"}, {"tuntap", "add", "x", "mode", "tun"}, {"token"}, {"-6", "tunnel"},
			{"-f", "inet6", "tunnel"}, {"-b", "tunnel"}, {"-batch", "file"}, {"tunnel", "add", "x", "mode", "gre"}, {"tunnel", "add", "gre1", "remote", "192.0.2.1"}, {"tunnel", "del", "sit1"}, {"tunnel", "add", "x", "mode", "sit", "remote", "any"},
			{"tunnel", "prl", "dev", "x"}, {"tunnel", "6rd", "dev", "x"}, {"route", "add", "tunnel"}, {"-n", "tunnel", "link"}, {"netns", "exec", "tunnel", "ip", "tunnel"},
		},
	} {
		for _, args := range lines {
			want := program
			for _, a := range args {
				want += " <" + a + ">"
			}
			if len(args) == 0 {
				want += " <>" // of printf without arguments
			}
			if out, status := run(t, path, args...); out != want || status != 7 {
				t.Errorf("ip %q: %q, status %d; want %q, status 7", args, out, status, want)
			}
		}
	}
	// Copies do not call each other.
	text, err := os.ReadFile(shim)
	if err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	if err := os.WriteFile(filepath.Join(copied, "ip"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, status := run(t, filepath.Dir(shim)+":"+copied+":"+dir+":"+os.Getenv("PATH"), "addr"); out != "ip <addr>" || status != 7 {
		t.Errorf("with a copy: %q, status %d", out, status)
	}
	// Without another ip there is no loop.
	if out, status := run(t, filepath.Dir(shim)+":"+again, "addr"); status != 127 {
		t.Errorf("without another ip: %q, status %d", out, status)
	}
}
