package netlab_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

func newHost(t testing.TB, lab *netlab.Lab, name string) *netlab.Host {
	t.Helper()
	host, err := lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// namespace returns the name of the calling thread's network namespace, which is unique in the machine.
func namespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// heldNamespaces returns how many threads and descriptors of this process are in or refer to the named namespace.
func heldNamespaces(t *testing.T, name string) int {
	t.Helper()
	held := 0
	for _, pattern := range []string{"/proc/self/task", "/proc/self/fd"} {
		entries, err := os.ReadDir(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := pattern + "/" + e.Name()
			if pattern == "/proc/self/task" {
				path += "/ns/net"
			}
			// Threads and descriptors end while we look.
			if target, err := os.Readlink(path); err == nil && target == name {
				held++
			}
		}
	}
	return held
}

func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestHostIsAlone(t *testing.T) {
	host := newHost(t, labtest.New(t), "h")
	links, err := host.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Attrs().Name != "lo" || links[0].Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("devices of a new host: %v, want lo, up", links)
	}
}

func TestDo(t *testing.T) {
	lab := labtest.New(t)
	a, b := newHost(t, lab, "a"), newHost(t, lab, "b")
	outside := namespace(t)

	var inA, inB, back string
	err := a.Do(func() error {
		inA = namespace(t)
		if unix.Gettid() == unix.Getpid() {
			t.Error("Do runs on the main thread")
		}
		err := b.Do(func() error { inB = namespace(t); return nil })
		back = namespace(t)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inA == outside || inB == outside || inA == inB || back != inA {
		t.Errorf("namespaces: outside %s, a %s, b %s, a again %s", outside, inA, inB, back)
	}
	if now := namespace(t); now != outside {
		t.Errorf("Do left its caller in %s, want %s", now, outside)
	}

	want := errors.New("from fn")
	if got := a.Do(func() error { return want }); got != want {
		t.Errorf("Do returned %v, want fn's error", got)
	}
}

func TestDoPassesFailNowOn(t *testing.T) {
	host := newHost(t, labtest.New(t), "h")
	ended := make(chan bool)
	go func() {
		returned := false
		defer func() { ended <- returned }()
		host.Do(func() error { runtime.Goexit(); return nil })
		returned = true
	}()
	if <-ended {
		t.Error("Do returned although fn did not")
	}
}

func TestSysctl(t *testing.T) {
	lab := labtest.New(t)
	a, b := newHost(t, lab, "a"), newHost(t, lab, "b")
	for key, value := range map[string]string{"net.ipv4.ip_default_ttl": "17", "net/ipv4/conf/lo/log_martians": "1"} {
		if err := a.Sysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	ttl := func(h *netlab.Host) string {
		var value []byte
		if err := h.Do(func() (err error) { value, err = os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl"); return err }); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(value))
	}
	if got, other := ttl(a), ttl(b); got != "17" || other == "17" {
		t.Errorf("ip_default_ttl is %s on a and %s on b, want 17 on a only", got, other)
	}
	if err := a.Sysctl("kernel.hostname", "x"); err == nil {
		t.Error("a variable of the machine can be set")
	}
	if err := a.Sysctl("net.ipv4.no_such_thing", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}

// A namespace ends with the last reference to it, and a veth with its first end: so the other end shows it.
func TestCloseLeavesNothing(t *testing.T) {
	other := newHost(t, labtest.New(t), "other")
	lab := labtest.New(t)
	host := newHost(t, lab, "h")
	if err := lab.Veth(host, "inside", other, "outside"); err != nil {
		t.Fatal(err)
	}
	var name string
	if err := host.Do(func() error { name = namespace(t); return nil }); err != nil {
		t.Fatal(err)
	}
	capture, err := host.Capture("inside")
	if err != nil {
		t.Fatal(err)
	}
	p, err := host.Start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if heldNamespaces(t, name) == 0 || !running(p.Pid()) {
		t.Fatal("there is nothing to leave behind")
	}

	for range 2 {
		if err := lab.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if running(p.Pid()) {
		t.Errorf("%v still runs", p)
	}
	if err := capture.Close(); err != nil {
		t.Errorf("close what the lab has closed: %v", err)
	}
	labtest.WaitFor(t, "the end of the host's threads and descriptors", func() bool { return heldNamespaces(t, name) == 0 })
	labtest.WaitFor(t, "the end of the namespace", func() bool {
		return errors.As(other.SetUp("outside"), new(netlink.LinkNotFoundError))
	})
}
