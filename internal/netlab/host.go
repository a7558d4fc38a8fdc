package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a network namespace, as alone as a machine of its own.
type Host struct {
	// Name is used in messages only.
	Name string

	lab *Lab
	ns  netns.NsHandle
	nl  *netlink.Handle
	// calls run on the thread that made the namespace. It lives as long as the host does, so it is the parent of
	// the host's processes: see Start.
	calls chan func()
	ended chan struct{}
}

func newHost(l *Lab, name string) (*Host, error) {
	h := &Host{Name: name, lab: l, ns: netns.None(), calls: make(chan func()), ended: make(chan struct{})}
	made := make(chan error)
	onThread(func() {
		defer close(h.ended)
		made <- h.unshare()
		for fn := range h.calls {
			fn()
		}
	})
	err := <-made
	if err == nil {
		err = h.prepare()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make host %s: %w", name, err), h.close())
	}
	return h, nil
}

// unshare gives the calling thread a network namespace of its own.
func (h *Host) unshare() error {
	var err error
	if h.ns, err = netns.New(); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("new network namespace: %w: run as root, in `unshare --user --map-root-user`, "+
			"or in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN", err)
	} else if err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	return nil
}

func (h *Host) prepare() error {
	// A kernel without IPv6 has no such file, and no noise.
	if err := h.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return h.SetUp("lo")
}

// close ends the host's thread and its hold on the namespace, which the kernel then takes down by itself, soon.
func (h *Host) close() error {
	close(h.calls)
	<-h.ended
	if h.nl != nil {
		h.nl.Close()
	}
	if !h.ns.IsOpen() {
		return nil
	}
	return h.ns.Close()
}

// Do runs fn inside the namespace and returns its error. Sockets and devices that fn opens stay in the namespace
// wherever they are used later; goroutines that fn starts are outside it. fn may call Do of any host, and testing's
// FailNow, which then ends the caller of Do too. It runs on a thread of its own, so it may take its time.
func (h *Host) Do(fn func() error) error {
	var (
		err      error
		returned bool
		done     = make(chan struct{})
	)
	onThread(func() {
		defer close(done)
		if err = netns.Set(h.ns); err != nil {
			err = fmt.Errorf("enter host %s: %w", h.Name, os.NewSyscallError("setns", err))
		} else {
			err = fn()
		}
		returned = true
	})
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// Netlink returns a route netlink handle in the namespace. It belongs to the host; do not close it.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// Sysctl sets a variable below net, such as "net.ipv4.ip_forward", within the namespace only. A key with slashes,
// such as "net/ipv4/conf/eth0.7/rp_filter", is taken as it is.
func (h *Host) Sysctl(key, value string) error {
	path := key
	if !strings.Contains(key, "/") {
		path = strings.ReplaceAll(key, ".", "/")
	}
	// All other variables are the machine's.
	if !strings.HasPrefix(path, "net/") {
		return fmt.Errorf("host %s: set %s: not a variable of a network namespace", h.Name, key)
	}
	// /proc/sys/net shows the namespace of the thread that opens it.
	err := h.Do(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: run the container with --privileged, or with a writable /proc/sys", err)
	}
	if err != nil {
		return fmt.Errorf("host %s: set %s to %s: %w", h.Name, key, value, err)
	}
	return nil
}
