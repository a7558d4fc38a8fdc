//go:build linux

package deploy_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"

	"golang.org/x/sys/unix"
)

// TestContainer runs goipip in a file system as of deploy/Containerfile: nothing but the program, which
// may do what its file capabilities say, read-only but for /run, as the image's user.
func TestContainer(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "tun", "unshare")
	if !strings.Contains(fileOf(t, "/proc/self/uid_map"), "4294967295") {
		t.Skip("needs the initial user namespace, for another user and a device")
	}
	containerfile := read(t, "deploy/Containerfile")
	user := regexp.MustCompile(`\nUSER (\S+)\n`).FindStringSubmatch(containerfile)
	if user == nil || !strings.Contains(containerfile, "setcap cap_net_admin,cap_net_raw+ep") {
		t.Fatalf("deploy/Containerfile: user %q", user)
	}
	ns01, ns02, _, err := labtest.New(t).Lab2()
	if err != nil {
		t.Fatal(err)
	}
	bin := labtest.Build(t, "goipip/cmd/goipip")
	if _, err := ns02.Start(exec.Command(bin, "-local", "192.168.8.101", "-remote", "192.168.6.101", "-address", "10.1.0.2", "-peer", "10.1.0.1")); err != nil {
		t.Fatal(err)
	}

	image := t.TempDir()
	for name, b := range map[string][]byte{"usr/bin/goipip": []byte(fileOf(t, bin)), "etc/goipip/site.toml": []byte(config)} {
		path := filepath.Join(image, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What setcap writes (struct vfs_cap_data, linux/capability.h): revision 2, effective.
	const capabilities = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	attribute := []byte{1, 0, 0, 2, capabilities & 0xff, capabilities >> 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(filepath.Join(image, "usr/bin/goipip"), "security.capability", attribute, 0); err != nil {
		t.Fatalf("set file capabilities: %v", err)
	}
	const start = `
		cd "$1" && mkdir dev proc run
		mount --bind . . && cd "$1" && mount -o remount,bind,ro .
		mount -t tmpfs -o mode=755 none dev && mkdir dev/net && mknod -m 666 dev/net/tun c 10 200
		mount -t tmpfs -o mode=1777 none run
		mount --rbind /proc proc
		exec chroot --userspec="$2" . /usr/bin/goipip run --config /etc/goipip`
	p, err := ns01.Start(exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", start, "sh", image, user[1]))
	if err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "an answer through the tunnel", func() bool {
		r, _ := ns01.Ping(labtest.Context(t), netip.MustParseAddr("10.1.0.2"), netlab.PingOptions{})
		return r.Received > 0
	})
	status := fileOf(t, fmt.Sprintf("/proc/%d/status", p.Pid()))
	id, _, _ := strings.Cut(user[1], ":")
	for _, want := range []string{"\nName:\tgoipip\n", "\nUid:\t" + id + "\t" + id + "\t", fmt.Sprintf("\nCapPrm:\t%016x\n", capabilities), fmt.Sprintf("\nCapEff:\t%016x\n", capabilities)} {
		if !strings.Contains("\n"+status, want) {
			t.Errorf("/proc/PID/status has no %q:\n%s", want, status)
		}
	}
	// What podman exec does finds the daemon.
	out, err := ns01.Output("nsenter", "--target", fmt.Sprint(p.Pid()), "--mount", "--root", "--setuid", id, "--setgid", id, "/usr/bin/goipip", "show")
	if err != nil || !strings.Contains(out, "tun01") || strings.Contains(out, "no tunnels") {
		t.Errorf("goipip show in the container: %s, %v", out, err)
	}
}

func fileOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
