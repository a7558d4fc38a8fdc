//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errNamespaceDeleted is the cause of a context that ended with its namespace.
var errNamespaceDeleted = errors.New("the network namespace was deleted")

// How often a namespace is looked at: one that has a name by one stat(2), any other
// by a look at all processes.
const (
	namedInterval   = time.Second
	unnamedInterval = 10 * time.Second
)

// namespace is the network namespace of this process. The kernel's tunnel ends with
// its namespace; goipip's sockets would keep it alive for ever after ip netns delete.
type namespace struct {
	proc  string      // where procfs is mounted
	self  string      // this process's id
	link  string      // net:[INODE], as links to the namespace read
	file  os.FileInfo // what they lead to
	probe string      // the inode of a netlink(7) socket in it
	name  string      // a path where it is mounted, "" if none is known
	alone bool        // no other process held it when last looked
}

// endWithNamespace returns a context that ends when ctx does, or, with cause
// errNamespaceDeleted, when nothing but goipip's background processes holds this
// process's network namespace. It is for them only. In the namespace of process 1,
// the machine's or the container's, it returns ctx itself.
func endWithNamespace(ctx context.Context) (context.Context, error) {
	n, err := openNamespace()
	if err != nil {
		return ctx, fmt.Errorf("watch the network namespace: %w", err)
	}
	if err := n.seesOthers(); err != nil {
		return ctx, fmt.Errorf("watch the network namespace: %w", err)
	}
	if n.has("1") {
		return ctx, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for {
			deleted, next := n.look()
			if deleted {
				cancel(errNamespaceDeleted)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(next):
			}
		}
	}()
	return ctx, nil
}

// seesOthers returns an error where /proc hides the processes of other users (hidepid in
// proc(5)). Process 1 always exists: where it does not show, others do not either.
func (n *namespace) seesOthers() error {
	if _, err := os.Stat(filepath.Join(n.proc, "1")); err != nil {
		return fmt.Errorf("other processes are hidden (hidepid): %w", err)
	}
	return nil
}

// openNamespace opens a socket that stays open as long as the process.
func openNamespace() (*namespace, error) {
	n := &namespace{proc: "/proc", self: strconv.Itoa(os.Getpid())}
	const own = "/proc/self/ns/net"
	var err error
	if n.link, err = os.Readlink(own); err != nil {
		return nil, err
	}
	if n.file, err = os.Stat(own); err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	var stat syscall.Stat_t
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}), syscall.Fstat(fd, &stat)); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	n.probe = strconv.FormatUint(stat.Ino, 10)
	return n, nil
}

// look reports whether the namespace was deleted, or else when to look again. Twice
// in a row no process may hold it, because processes come and go during a look.
func (n *namespace) look() (deleted bool, next time.Duration) {
	if n.isNamed() {
		n.alone = false
		return false, namedInterval
	}
	mounted := n.findName()
	if mounted || n.held() {
		n.alone = false
		if n.isNamed() {
			return false, namedInterval
		}
		return false, unnamedInterval
	}
	deleted, n.alone = n.alone, true
	return deleted, namedInterval
}

// isNamed reports whether the path found last still leads to the namespace.
func (n *namespace) isNamed() bool {
	if n.name == "" {
		return false
	}
	file, err := os.Stat(n.name)
	return err == nil && os.SameFile(file, n.file)
}

// findName reports whether the namespace is mounted anywhere, and remembers where:
// by ip netns add below /run/netns, or by unshare --net=FILE.
func (n *namespace) findName() bool {
	n.name = ""
	mounts, err := os.ReadFile(filepath.Join(n.proc, "self/mountinfo"))
	if err != nil {
		return true // it may be
	}
	for line := range strings.Lines(string(mounts)) {
		// ID, parent's ID, device, root, mount point, … (proc_pid_mountinfo(5))
		if f := strings.Fields(line); len(f) > 4 && f[3] == n.link {
			n.name = unescapeMount.Replace(f[4])
			return true
		}
	}
	return false
}

// unescapeMount undoes the escapes of a path in mountinfo (show_mountinfo).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// held reports whether another process holds the namespace, by a thread in it or by
// a descriptor of it. Background processes of goipip do not count: each of them
// asks the same.
func (n *namespace) held() bool {
	pids, err := os.ReadDir(n.proc)
	if err != nil {
		return true // it may be
	}
	var others []string
	for _, entry := range pids {
		pid := entry.Name()
		if _, err := strconv.Atoi(pid); err == nil && pid != n.self && !n.inBackground(pid) {
			others = append(others, pid)
		}
	}
	return slices.ContainsFunc(others, n.threadsHold) || slices.ContainsFunc(others, n.descriptorsHold)
}

// inBackground reports whether a process is one of goipip's in the background: it
// runs the same program, before or after an update, with the mark of those.
func (n *namespace) inBackground(pid string) bool {
	exe := func(pid string) string {
		path, err := os.Readlink(filepath.Join(n.proc, pid, "exe"))
		if err != nil {
			return pid // not that of any other
		}
		return strings.TrimSuffix(path, " (deleted)")
	}
	if exe(pid) != exe(n.self) {
		return false
	}
	environ, err := os.ReadFile(filepath.Join(n.proc, pid, "environ"))
	return err == nil && slices.ContainsFunc(strings.Split(string(environ), "\x00"), func(v string) bool {
		return strings.HasPrefix(v, readyEnv+"=")
	})
}

// threadsHold reports whether a thread of the process is in the namespace.
func (n *namespace) threadsHold(pid string) bool {
	threads, err := os.ReadDir(filepath.Join(n.proc, pid, "task"))
	if err != nil {
		return !ended(err)
	}
	return slices.ContainsFunc(threads, func(tid os.DirEntry) bool { return n.has(filepath.Join(pid, "task", tid.Name())) })
}

// has reports whether a task, PID or PID/task/TID, is in the namespace. One of which
// neither that nor the opposite shows may be.
func (n *namespace) has(task string) bool {
	link, err := os.Readlink(filepath.Join(n.proc, task, "ns/net"))
	if err == nil {
		return link == n.link
	}
	if ended(err) {
		return false
	}
	// What it takes to read the link is the right to trace the task
	// (PTRACE_MODE_READ_FSCREDS, namespaces(7)), which even root may lack. Anybody
	// may read what sockets there are in its namespace: is the probe among them?
	sockets, err := os.ReadFile(filepath.Join(n.proc, task, "net/netlink"))
	if err != nil {
		return !ended(err)
	}
	for line := range strings.Lines(string(sockets)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == n.probe {
			return true
		}
	}
	return false
}

// descriptorsHold reports whether the process has the namespace open, as those do
// that enter it now and then. Descriptors that this process may not see do not count.
func (n *namespace) descriptorsHold(pid string) bool {
	dir := filepath.Join(n.proc, pid, "fd")
	descriptors, _ := os.ReadDir(dir)
	return slices.ContainsFunc(descriptors, func(fd os.DirEntry) bool {
		link, err := os.Readlink(filepath.Join(dir, fd.Name()))
		return err == nil && link == n.link
	})
}

// ended reports whether an error of a file in /proc/PID means that the process has
// ended.
func ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }
