package tun_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/tun"
)

// The descriptors of a device, seen by /proc.

// descriptors returns this process's descriptors that are queues of the device
// called name, which no other device in any namespace of the test may be called.
func descriptors(t *testing.T, name string) (fds []int) {
	t.Helper()
	for _, fd := range allDescriptors(t) {
		// tun_chr_show_fdinfo in drivers/net/tun.c
		if strings.Contains(fdInfo(fd), "\niff:\t"+name+"\n") {
			fds = append(fds, fd)
		}
	}
	return fds
}

func allDescriptors(t *testing.T) (fds []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// fdInfo returns what the kernel says about a descriptor, see proc_pid_fdinfo(5),
// and "" about one that is closed, as that of /proc/self/fd itself is by now.
func fdInfo(fd int) string {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return ""
	}
	return string(info)
}

// No child process inherits a device, which would then outlive goipip.
func TestOpen_CloseOnExec(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun-exec", Queues: 4, Offload: true})
	fds := descriptors(t, d.Name())
	if len(fds) != 4 {
		t.Fatalf("%d descriptors, want 4", len(fds))
	}
	for _, fd := range fds {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			t.Fatal(err)
		}
		if flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is inherited by child processes:\n%s", fd, fdInfo(fd))
		}
	}
}

// Every queue that water opened has the virtio-net header if and only if the control
// descriptor asked for it.
func TestOpen_VNetHeader(t *testing.T) {
	h := newHost(t)
	for _, offload := range []bool{false, true} {
		for _, queues := range []int{1, 8} {
			t.Run(fmt.Sprintf("offload=%v,queues=%d", offload, queues), func(t *testing.T) {
				d := open(t, h, tun.Config{Name: "tun-vnet", Queues: queues, Offload: offload})
				for i, q := range d.Queues() {
					if q.VNet() != offload {
						t.Errorf("queue %d: VNet() = %v, want %v", i, q.VNet(), offload)
					}
				}
				for _, fd := range descriptors(t, d.Name()) {
					checkFlags(t, fd, offload)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func checkFlags(t *testing.T, fd int, vnet bool) {
	t.Helper()
	ifr, err := unix.NewIfreq("")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	// IFF_TUN_EXCL is for TUNSETIFF only.
	want := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if vnet {
		want |= unix.IFF_VNET_HDR
	}
	if got := ifr.Uint16(); got != want {
		t.Errorf("descriptor %d has the flags %#x, want %#x", fd, got, want)
	}
}

// Opening devices, successfully or not, and closing them leaks no descriptor.
func TestOpen_NoDescriptorLeaks(t *testing.T) {
	labtest.Long(t)
	h := newHost(t)
	open(t, h, tun.Config{Name: "taken", Queues: 1})
	tests := []struct {
		name  string
		cycle func(t *testing.T)
	}{
		{"Open, Setup, Close", func(t *testing.T) {
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 3, Offload: true})
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if hasLink(t, h, "tun01") {
				t.Fatal("the link is there after Close")
			}
		}},
		{"name taken", failingOpen(h, "taken")},
		{"name too long", failingOpen(h, "sixteen-bytes-xx")},
		{"name impossible", failingOpen(h, "a/b")},
		{"link deleted", func(t *testing.T) {
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 2})
			if err := h.DeleteLink("tun01"); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cycle(t) // the runtime opens descriptors of its own here
			before := allDescriptors(t)
			for range 50 {
				tt.cycle(t)
			}
			if after := allDescriptors(t); len(after) != len(before) {
				t.Errorf("%d descriptors became %d in 50 cycles", len(before), len(after))
			}
		})
	}
}

func failingOpen(h *host, name string) func(t *testing.T) {
	return func(t *testing.T) {
		if err := tryOpen(h, tun.Config{Name: name, Queues: 1, Offload: true}); err == nil {
			t.Fatalf("Open of %q worked", name)
		}
	}
}
