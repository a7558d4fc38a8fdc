//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// procfs is a directory that looks like procfs as far as a namespace looks at it.
// Process 10 is this one.
type procfs struct {
	t   *testing.T
	dir string
}

const ours, theirs = "net:[4026532177]", "net:[4026531833]"

func newProcfs(t *testing.T) (procfs, *namespace) {
	t.Helper()
	p := procfs{t, t.TempDir()}
	p.process("10", "/usr/bin/goipip", ours, "10")
	p.write("10/environ", "HOME=/\x00GOIPIP_READY=1\x00")
	p.process("1", "/sbin/init", theirs, "1")
	p.mounts("")
	name := filepath.Join(p.dir, "name") // what a mounted namespace is a link to
	p.write("name", "")
	file, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return p, &namespace{proc: p.dir, self: "10", link: ours, file: file, probe: "4242"}
}

func (p procfs) write(name, content string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		p.t.Fatal(err)
	}
}

func (p procfs) link(name, to string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.RemoveAll(path), os.Symlink(to, path)); err != nil {
		p.t.Fatal(err)
	}
}

// process adds a process with threads in a namespace.
func (p procfs) process(pid, exe, namespace string, tids ...string) {
	p.t.Helper()
	p.link(pid+"/exe", exe)
	p.link(pid+"/ns/net", namespace)
	p.link(pid+"/fd/0", "/dev/null")
	p.write(pid+"/environ", "HOME=/\x00")
	for _, tid := range tids {
		p.link(pid+"/task/"+tid+"/ns/net", namespace)
	}
}

// mounts makes the namespace mounted at the given paths.
func (p procfs) mounts(paths ...string) {
	p.t.Helper()
	table := "42 27 254:0 /run/netns /run/netns rw,relatime shared:1 - ext4 /dev/vda rw\n" +
		"68 66 0:4 " + theirs + " /run/netns/other rw master:3 - nsfs nsfs rw\n"
	for _, path := range paths {
		if path != "" {
			table += fmt.Sprintf("67 66 0:4 %s %s rw master:2 - nsfs nsfs rw\n", ours, path)
		}
	}
	p.write("self/mountinfo", table)
}

// unreadable makes a link one that cannot be read: the error is neither that of a
// missing file nor of an ended process.
func (p procfs) unreadable(task string) {
	p.t.Helper()
	path := filepath.Join(p.dir, task, "ns/net")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
		p.t.Fatal(err)
	}
}

// Who holds a namespace that has no name.
func TestHazard23_Holders(t *testing.T) {
	const sockets = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n0000000000000000 0   0          00000000 0        0        0     2        0        %d       \n"
	for name, c := range map[string]struct {
		add  func(p procfs)
		held bool
	}{
		"nobody":              {func(procfs) {}, false},
		"a process":           {func(p procfs) { p.process("20", "/bin/sleep", ours, "20") }, true},
		"a process elsewhere": {func(p procfs) { p.process("20", "/bin/sleep", theirs, "20") }, false},
		"a thread":            {func(p procfs) { p.process("20", "/bin/x", theirs, "20"); p.link("20/task/21/ns/net", ours) }, true},
		"a descriptor":        {func(p procfs) { p.process("20", "/bin/x", theirs, "20"); p.link("20/fd/3", ours) }, true},
		"an ended process":    {func(p procfs) { p.link("20/exe", "/bin/x") }, false},
		"an ended thread":     {func(p procfs) { p.process("20", "/bin/x", theirs, "20"); p.write("20/task/21/comm", "x") }, false},
		"goipip in background": {func(p procfs) {
			p.process("20", "/usr/bin/goipip", ours, "20")
			p.write("20/environ", "GOIPIP_READY=1\x00")
		}, false},
		"that one, updated": {func(p procfs) {
			p.process("20", "/usr/bin/goipip (deleted)", ours, "20")
			p.write("20/environ", "GOIPIP_READY=1\x00")
		}, false},
		"goipip in foreground": {func(p procfs) {
			p.process("20", "/usr/bin/goipip", ours, "20")
			p.write("20/environ", "XGOIPIP_READY=1\x00")
		}, true},
		"what looks like it": {func(p procfs) { p.process("20", "/bin/sleep", ours, "20"); p.write("20/environ", "GOIPIP_READY=1\x00") }, true},
		"unreadable": {func(p procfs) {
			p.process("20", "/bin/x", ours, "20")
			p.unreadable("20/task/20")
			p.write("20/task/20/net/netlink/x", "")
		}, true},
		"unreadable, elsewhere": {func(p procfs) {
			p.process("20", "/bin/x", ours, "20")
			p.unreadable("20/task/20")
			p.write("20/task/20/net/netlink", fmt.Sprintf(sockets, 14242))
		}, false},
		"unreadable, in it": {func(p procfs) {
			p.process("20", "/bin/x", ours, "20")
			p.unreadable("20/task/20")
			p.write("20/task/20/net/netlink", fmt.Sprintf(sockets, 4242))
		}, true},
		"mounted":                 {func(p procfs) { p.mounts("/run/netns/gone") }, true},
		"an unreadable mountinfo": {func(p procfs) { os.Remove(filepath.Join(p.dir, "self/mountinfo")) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			p, n := newProcfs(t)
			c.add(p)
			first, wait := n.look()
			if want := map[bool]time.Duration{true: unnamedInterval, false: namedInterval}[c.held]; first || wait != want {
				t.Errorf("the first look: deleted %v, the next after %v, want %v", first, wait, want)
			}
			if second, _ := n.look(); second == c.held {
				t.Errorf("the second look: deleted %v, want %v", second, !c.held)
			}
		})
	}
}

// A namespace with a name is held as long as the name leads to it, and found by
// another one afterwards.
func TestHazard23_Names(t *testing.T) {
	p, n := newProcfs(t)
	name := filepath.Join(p.dir, "name")
	step := func(what string, deleted bool, next time.Duration) {
		t.Helper()
		if d, after := n.look(); d != deleted || !d && after != next {
			t.Errorf("%s: deleted %v, the next look after %v, want %v, %v", what, d, after, deleted, next)
		}
	}
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	p.mounts(name)
	step("named", false, namedInterval)
	p.mounts() // nothing but the name is looked at
	step("named", false, namedInterval)

	rename(name, name+" 2")
	p.mounts(name + `\0402`)
	step("another name", false, namedInterval)
	rename(name+" 2", name)
	p.mounts()
	step("no name, once", false, namedInterval)
	p.mounts(name)
	step("named again", false, namedInterval)

	rename(name, name+"x")
	p.write("name", "another namespace")
	p.mounts()
	step("no name, once", false, namedInterval)
	step("no name, twice", true, 0)
}

// The namespace of process 1, which this test runs in, is never given up.
func TestHazard23_Machine(t *testing.T) {
	n, err := openNamespace()
	if err != nil {
		t.Fatal(err)
	}
	if own, err := os.Readlink("/proc/1/ns/net"); err == nil && own != n.link {
		t.Skip("this test does not run in the network namespace of process 1")
	}
	ctx, err := endWithNamespace(t.Context())
	if err != nil || ctx != t.Context() {
		t.Errorf("the namespace is watched: %v", err)
	}
	// What shows a namespace whose link may not be read.
	sockets, err := os.ReadFile("/proc/self/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(sockets), " "+n.probe+" ") {
		t.Errorf("the sockets of the namespace do not include the probe %s:\n%s", n.probe, sockets)
	}
}

// Where other users' processes are hidden, nothing tells that nobody holds the namespace.
func TestHazard23_HiddenProcesses(t *testing.T) {
	p, n := newProcfs(t)
	if err := n.seesOthers(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(p.dir, "1")); err != nil {
		t.Fatal(err)
	}
	if err := n.seesOthers(); err == nil {
		t.Error("the namespace is watched although other processes are hidden")
	}
}
