//go:build linux

package main_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// endTime is when the end of a background process is given up: it looks at a
// namespace without a name every ten seconds.
const endTime = 30 * time.Second

// named is a network namespace made by ip netns add, with a cable to a lab's host.
type named struct {
	name string
	peer *netlab.Host // has the other end of the cable, peer0, until the kernel frees the namespace
}

var namespaces atomic.Int32

// newNamed makes one, which is deleted after the test if it was not before.
func newNamed(t *testing.T) named {
	t.Helper()
	labtest.Need(t, "root", "tun", "ip")
	lab := labtest.New(t)
	peer, err := lab.Host("peer")
	if err != nil {
		t.Fatal(err)
	}
	n := named{fmt.Sprintf("goipip-test-%d-%d", os.Getpid(), namespaces.Add(1)), peer}
	command(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", n.name).Run() })
	if out, err := peer.Output("ip", "link", "add", "peer0", "type", "veth", "peer", "name", "eth0", "netns", n.name); err != nil {
		t.Fatal(out, err)
	}
	return n
}

func (n named) delete(t *testing.T) {
	t.Helper()
	command(t, "ip", "netns", "delete", n.name)
}

// isFreed reports whether the kernel has freed the namespace.
func (n named) isFreed() bool {
	_, err := n.peer.Netlink().LinkByName("peer0")
	return err != nil
}

// command runs a command that must succeed.
func command(t *testing.T, args ...string) string {
	t.Helper()
	r := runCommand(t, exec.CommandContext(labtest.Context(t), args[0], args[1:]...))
	if r.status != 0 {
		t.Fatalf("%q: status %d: %s%s", args, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

var ends atomic.Int32

// addTunnel is goipip tunnel add, entered by words such as ip netns exec NAME. It
// returns the id of the process in the background, which is killed after the test.
func addTunnel(t *testing.T, enter ...string) (pid int) {
	t.Helper()
	return addTunnelBy(t, func(args ...string) string { return command(t, slices.Concat(enter, args)...) })
}

// addTunnelOn does the same on a lab's host.
func addTunnelOn(t *testing.T, h *netlab.Host) (pid int) {
	t.Helper()
	return addTunnelBy(t, func(args ...string) string {
		out, err := h.Output(args[0], args[1:]...)
		if err != nil {
			t.Fatal(out, err)
		}
		return out
	})
}

func addTunnelBy(t *testing.T, run func(args ...string) (out string)) (pid int) {
	t.Helper()
	labtest.Need(t, "root", "tun")
	n := ends.Add(1)
	script := fmt.Sprintf(`"$0" tunnel add tun%02d mode ipip local 198.51.100.1 remote 192.0.2.%d &&
		cat /run/goipip/$(stat -Lc %%i /proc/self/ns/net)/control.lock`, n, n)
	out := run("sh", "-c", script, labtest.BuildGoipip(t))
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("process id of the daemon: %v", err)
	}
	t.Cleanup(func() {
		if p, err := os.FindProcess(pid); err == nil && !hasEnded(t, pid) {
			p.Kill()
		}
	})
	return pid
}

// hasEnded reports whether the process ran goipip and does not any more.
func hasEnded(t *testing.T, pid int) bool {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err != nil || exe != labtest.BuildGoipip(t)
}

// wait waits longer than labtest.WaitFor for what takes goipip a while.
func wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(endTime); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain for %s", endTime, what)
		}
	}
}

// Tunnels do not keep a deleted namespace alive.
func TestHazard23_NamespaceDeleted(t *testing.T) {
	t.Parallel()
	n := newNamed(t)
	exec := []string{"ip", "netns", "exec", n.name}
	daemon := addTunnel(t, exec...)
	if again := addTunnel(t, exec...); again != daemon {
		t.Errorf("the second tunnel has the daemon %d, and the first one %d", again, daemon)
	}
	n.delete(t)
	wait(t, "the daemon to end", func() bool { return hasEnded(t, daemon) })
	labtest.WaitFor(t, "the kernel to free the namespace", n.isFreed)
}

// The end is one in peace, and the log says why.
func TestHazard23_StatusAndLog(t *testing.T) {
	t.Parallel()
	n := newNamed(t)
	dir := t.TempDir()
	syslog, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "log"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer syslog.Close()
	// The process in the background as the one on the terminal starts it, but a child
	// of the test, which gets its exit status, and with a /dev/log of its own.
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	const script = `mount -t tmpfs none /dev && mkdir /dev/net && mknod /dev/net/tun c 10 200 && mknod /dev/null c 1 3 &&
		ln -s "$0" /dev/log && exec "$@"`
	cmd := exec.CommandContext(labtest.Context(t), "ip", "netns", "exec", n.name, "sh", "-c", script, filepath.Join(dir, "log"),
		labtest.BuildGoipip(t), "daemon")
	cmd.Env = append(os.Environ(), "GOIPIP_READY=1")
	cmd.ExtraFiles = []*os.File{write}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	if n, err := read.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("the daemon does not come up: %v: %v: %s", err, cmd.Wait(), &stderr)
	}
	addTunnel(t, "ip", "netns", "exec", n.name)
	n.delete(t)
	if err := cmd.Wait(); err != nil {
		t.Errorf("goipip ends with %v, want status 0", err)
	}
	syslog.SetReadDeadline(time.Now().Add(time.Second))
	var log []byte
	for buf := make([]byte, 4096); ; {
		n, err := syslog.Read(buf)
		if err != nil {
			break
		}
		log = append(append(log, buf[:n]...), '\n')
	}
	if want := `why="the network namespace was deleted"`; !bytes.Contains(log, []byte(want)) {
		t.Errorf("syslog gets %q, want %s", log, want)
	}
}

// A namespace that a process still uses is not given up, and neither is one without
// a name that somebody holds: as long as somebody does.
func TestHazard23_NamespaceHeld(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	n := newNamed(t)
	sleep := exec.CommandContext(labtest.Context(t), "ip", "netns", "exec", n.name, "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	held := addTunnel(t, "ip", "netns", "exec", n.name)
	n.delete(t)

	// One that this program holds, by a thread and a descriptor.
	byThread := addTunnelOn(t, n.peer)
	// One that is mounted elsewhere.
	file := filepath.Join(t.TempDir(), "namespace")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "unshare", "--net="+file, "true")
	t.Cleanup(func() { exec.Command("umount", file).Run() })
	byMount := addTunnel(t, "nsenter", "--net="+file)

	// One that nobody holds ends, and by then the others would have, which were there
	// before.
	nobodys := addTunnel(t, "unshare", "--net")
	wait(t, "the end of the tunnel whose namespace nobody holds", func() bool { return hasEnded(t, nobodys) })
	for what, pid := range map[string]int{"a process": held, "a thread": byThread, "a mount": byMount} {
		if hasEnded(t, pid) {
			t.Errorf("a tunnel has ended whose namespace is held by %s", what)
		}
	}
	if n.isFreed() {
		t.Error("the namespace of a process was freed")
	}

	// When the last holder ends, so do the tunnels.
	command(t, "umount", file)
	sleep.Process.Kill()
	sleep.Wait()
	wait(t, "the tunnels to end", func() bool { return hasEnded(t, held) && hasEnded(t, byMount) })
	labtest.WaitFor(t, "the kernel to free the namespace", n.isFreed)
}
