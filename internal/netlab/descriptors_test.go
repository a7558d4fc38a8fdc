package netlab_test

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// makeGoipip returns the path of a goipip as make builds it.
func makeGoipip(t *testing.T) string {
	t.Helper()
	labtest.Need(t, "make")
	path := filepath.Join(t.TempDir(), "goipip")
	out, err := exec.Command("make", "-C", "../..", "goipip", "OUT="+path).CombinedOutput()
	if err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	return path
}

// What make builds runs on a machine without a C library.
func TestHazard21_StaticBuild(t *testing.T) {
	f, err := elf.Open(makeGoipip(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }); i >= 0 {
		interpreter, err := io.ReadAll(f.Progs[i].Open())
		t.Errorf("the program needs a dynamic linker: %q, %v", interpreter, err)
	}
}

// limited is a command that may have only so many descriptors.
func limited(limit int, name string, args ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(limit), name}, args...)...)
}

// Too few descriptors are one line that says how many are enough.
func TestHazard21_FewDescriptors(t *testing.T) {
	t.Parallel()
	binary := makeGoipip(t) // static, because a dynamic linker needs a descriptor too
	l := newTunnelLab(t)
	l.end02.start(t)
	cure := regexp.MustCompile(`^goipip: .*descriptors.* limit is \d+: .*ulimit -n (\d+)\)\n$`)

	// refused runs a command to its end, and returns how many descriptors it says it needs.
	refused := func(limit int, args ...string) int {
		t.Helper()
		g := start(t, l.ns01, limited(limit, binary, args...))
		err := g.Wait(labtest.Context(t))
		var exit *exec.ExitError
		found := cure.FindStringSubmatch(g.out.String())
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || found == nil {
			t.Fatalf("ulimit -n %d; goipip %v: %v, want exit status 1 and one line with the cure:\n%s", limit, args, err, &g.out)
		}
		enough, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		return enough
	}
	tunnel := []string{"-name", l.end01.dev, "-local", l.end01.local, "-remote", l.end01.remote}
	words := []string{"tunnel", "add", l.end01.dev, "mode", "ipip", "local", l.end01.local, "remote", l.end01.remote}
	enough := refused(40, append(tunnel, "-queues", "1")...)
	for limit := 3; limit < 40; limit++ {
		if limit == 6 || limit == 7 {
			continue // a library opens a file before main does anything (protobuf's internal/detrand), and the runtime has no room for its poller
		}
		if n := refused(limit, append(tunnel, "-queues", "1")...); n != enough {
			t.Errorf("with %d descriptors, %d are enough, and with 40, %d", limit, n, enough)
		}
	}
	for _, limit := range []int{3, 8, 16, 24} {
		refused(limit, words...)
		refused(limit, "tunnel", "show")
		refused(limit, "doctor")
		refused(limit, "demo")
	}

	for _, queues := range []int{1, 4} {
		args := append(slices.Clone(tunnel), "-queues", strconv.Itoa(queues))
		enough := refused(40, args...)
		if again := refused(enough-1, args...); again != enough {
			t.Errorf("-queues %d needs %d descriptors, and %d where there is one less", queues, enough, again)
		}
		g := l.end01.startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) {
			in := limited(enough, binary, args...)
			in.Stdout, in.Stderr = cmd.Stdout, cmd.Stderr
			return l.ns01.Start(in)
		})
		l.pingBothWays(t)
		l.carriesTCP(t)
		g.hasNoComplaint(t)
		if used := descriptors(t, g); used > enough*3/4 {
			t.Errorf("-queues %d: %d descriptors of %d are in use: too near", queues, used, enough)
		}
		g.exits(t, l.end01, func() error { return g.Signal(unix.SIGTERM) })
	}

	// The process in the background has one more, the pipe to its parent.
	enough = refused(40, words...)
	add := start(t, l.ns01, limited(enough, binary, words...))
	if err := add.Wait(labtest.Context(t)); err != nil {
		t.Errorf("%v: %v", err, &add.out)
	}
	if err := l.ns01.SetUp(l.end01.dev); err != nil {
		t.Fatal(err)
	}
	l.end01.address(t)
	l.pingBothWays(t)
	if err := l.ns01.DeleteLink(l.end01.dev); err != nil {
		t.Error(err)
	}
}

// What the caller has open stays the caller's: a lock that is taken around goipip tunnel add ends with that.
func TestHazard23_InheritedLock(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*netlab.Host, *exec.Cmd) (*netlab.Process, error){
		"close_range": (*netlab.Host).Start,
		"Linux 5.8":   withoutCloseRange(unix.ENOSYS),
		"Linux 5.10":  withoutCloseRange(unix.EINVAL),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			lock := filepath.Join(t.TempDir(), "lock")
			take := func(how int) error {
				f, err := os.Create(lock)
				if err != nil {
					return err
				}
				defer f.Close()
				return unix.Flock(int(f.Fd()), how)
			}

			f, err := os.Create(lock)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
			cmd := goipipCommand(t, "tunnel", "add", l.end01.dev, "mode", "ipip", "local", l.end01.local, "remote", l.end01.remote)
			cmd.ExtraFiles = []*os.File{f, f, f, f, f, f, f} // 3 to 9
			add := startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) { return start(l.ns01, cmd) }, cmd)
			f.Close()
			if err := add.Wait(labtest.Context(t)); err != nil {
				t.Fatalf("%v: %v", err, &add.out)
			}
			t.Cleanup(func() { l.ns01.DeleteLink(l.end01.dev) })
			if err := take(unix.LOCK_EX | unix.LOCK_NB); err != nil {
				t.Errorf("the lock of the caller of goipip tunnel add, after that: %v", err)
			}
			pids := goipips(t, l.ns01)
			if len(pids) != 1 {
				t.Fatalf("processes %v, want one", pids)
			}
			dir := fmt.Sprintf("/proc/%d/fd", pids[0])
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if file, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(file, lock) {
					t.Errorf("the process in the background has %s as descriptor %s", file, e.Name())
				}
			}
		})
	}
}

// withoutCloseRange starts a process as in an older kernel.
func withoutCloseRange(errno unix.Errno) func(*netlab.Host, *exec.Cmd) (*netlab.Process, error) {
	refused := netlab.RefusedCall{Number: unix.SYS_CLOSE_RANGE, Unless: bpf.JumpLessThan, Value: 3, Errno: errno}
	return func(h *netlab.Host, cmd *exec.Cmd) (*netlab.Process, error) { return h.StartRefusing(cmd, refused) }
}
