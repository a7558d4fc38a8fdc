package netlab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
)

// Where no claim on the ends can be made, a tunnel starts without one, and says once what that means and what to do. With
// a directory of the user's own it claims them there.
func TestHazard19_NoRun(t *testing.T) {
	t.Parallel()
	const (
		tmpfs = "mount -t tmpfs -o mode=755 none /run"
		user  = tmpfs + " && mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200"
		as    = "setpriv --reuid 65534 --clear-groups --inh-caps +net_admin,+net_raw --ambient-caps +net_admin,+net_raw "
	)
	for name, c := range map[string]struct {
		prepare, as string // shell commands in a mount namespace of their own, and what goipip is run by
		own         bool   // XDG_RUNTIME_DIR is that user's
		reason      string // in the warning
		claimed     bool
	}{
		"read-only":                {prepare: "mount -t tmpfs -o ro none /run", reason: "read-only file system"},
		"read-only, own directory": {prepare: "mount -t tmpfs -o ro none /run", own: true, claimed: true},
		"another user's":           {prepare: tmpfs + " && chmod 1777 /run && mkdir /run/goipip && chown 65534 /run/goipip", reason: "/run/goipip"},
		"symbolic link":            {prepare: tmpfs + " && mkdir /run/x && ln -s x /run/goipip", reason: "/run/goipip"},
		"user without privileges":  {prepare: user, as: as, reason: "permission denied"},
		"user, own directory":      {prepare: user, as: as, own: true, claimed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			own := ""
			if c.own {
				own = t.TempDir()
				if c.as != "" {
					if err := errors.Join(os.Chown(own, 65534, 65534), os.Chmod(filepath.Dir(own), 0o711)); err != nil {
						t.Fatal(err)
					}
				}
			}
			run := func(dev string) *background {
				g := goipipCommand(t, "-name", dev, "-local", l.end01.local, "-remote", l.end01.remote)
				script := c.prepare + " && exec " + c.as + `"$@"`
				cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh"}, g.Args...)...)
				cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+own)
				return start(t, l.ns01, cmd)
			}
			first := run("tun01")
			first.out.waitFor(t, "tunnel is up")
			second := run("second")
			if c.claimed {
				labtest.Within(t, "the refusal of a second tunnel", second.ended)
				mentions(t, "the refusal", second.out.String(),
					fmt.Sprintf("file exists: goipip with process id %d has the same two ends (ip link delete tun01)", first.Pid()))
				first.hasNoComplaint(t)
				return
			}
			second.out.waitFor(t, "tunnel is up")
			const warning = "cannot lock this pair of addresses"
			if log := first.out.String(); strings.Count(log, warning) != 1 || !strings.Contains(log, c.reason) {
				t.Errorf("goipip says\n%swant one warning %q, and %q", log, warning, c.reason)
			}
			if err := first.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			labtest.Within(t, "the end", first.ended)
		})
	}
}
