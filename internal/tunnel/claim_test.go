package tunnel_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"goipip/internal/tunnel"
)

// An abstract Unix socket needs no privilege, so its name must not keep a tunnel
// from starting.
func TestHazard19_AnybodysSocket(t *testing.T) {
	a, b := hosts(t)
	cfg := config(a, b)
	err := a.host.Do(func() error {
		name := fmt.Sprintf("@goipip local %v remote %v", cfg.Local, cfg.Remote)
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a.start(t, cfg)
}

// open opens a tunnel on s that does not run, and closes it when the test ends.
func (s *site) open(t *testing.T, cfg tunnel.Config) (opened *tunnel.Tunnel, err error) {
	t.Helper()
	err = s.host.Do(func() (err error) {
		opened, err = tunnel.Open(cfg, s.log)
		return err
	})
	if err == nil {
		t.Cleanup(opened.Close)
	}
	return opened, err
}

// The message about a conflict names who has the ends, and how to end that.
func TestHazard19_Conflict(t *testing.T) {
	needsLocal(t)
	a, b := hosts(t)
	first, err := a.open(t, config(a, b))
	if err != nil {
		t.Fatal(err)
	}
	second := config(a, b)
	second.Name = "tun02"
	const want = "tunnel from 192.168.6.1 to 192.168.6.2: file exists: goipip with process id %d has the same two ends (ip link delete tun01)"
	for range 2 {
		_, err = a.open(t, second)
		if want := fmt.Sprintf(want, os.Getpid()); err == nil || err.Error() != want || !errors.Is(err, syscall.EEXIST) {
			t.Fatalf("Open: %v, want %s", err, want)
		}
	}
	// Other ends, and the same ones in another namespace, are other tunnels.
	third := config(a, b)
	third.Name, third.Remote = "tun03", third.Remote.Next()
	if _, err := a.open(t, third); err != nil {
		t.Error(err)
	}
	if _, err := b.open(t, config(a, b)); err != nil {
		t.Error(err)
	}
	// The ends are free as soon as their tunnel is closed.
	first.Close()
	if _, err := a.open(t, second); err != nil {
		t.Error(err)
	}
}

// claimPath returns the file of a claim on cfg's ends on s.
func claimPath(t *testing.T, s *site, cfg tunnel.Config) (path string) {
	t.Helper()
	must(t, s.host.Do(func() error {
		namespace, err := os.Readlink("/proc/thread-self/ns/net")
		inode := strings.Trim(namespace, "net:[]")
		path = fmt.Sprintf("/run/goipip/%s/%v-%v", inode, cfg.Local, cfg.Remote)
		return err
	}))
	return path
}

// Only root can open what holds the claim, and nothing is left of it.
func TestHazard19_File(t *testing.T) {
	needsLocal(t)
	a, b := hosts(t)
	cfg := config(a, b)
	path := claimPath(t, a, cfg)
	// A killed process in another namespace, whose inode this one has now, may have left
	// files there.
	must(t, os.RemoveAll(filepath.Dir(path)))
	tunnel, err := a.open(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]os.FileMode{
		"/run/goipip": os.ModeDir | 0o755, filepath.Dir(path): os.ModeDir | 0o755, path: 0o600,
	} {
		info, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode()&^mode != 0 || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s has mode %v and owner %d, want %v at most, and root", p, info.Mode(), info.Sys().(*syscall.Stat_t).Uid, mode)
		}
	}
	content, err := os.ReadFile(path)
	if want := fmt.Sprintf("%d tun01\n", os.Getpid()); err != nil || string(content) != want {
		t.Errorf("%s says %q, %v, want %q", path, content, err, want)
	}
	tunnel.Close()
	if _, err := os.Lstat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", filepath.Dir(path), err)
	}
}

// What a killed process leaves behind is no claim.
func TestHazard19_Leftover(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "goipip", "1", "ends")
	must(t,
		os.MkdirAll(filepath.Dir(path), 0o755),
		os.WriteFile(path, []byte("4000000 a-long-name-xx\n"), 0o600),
	)
	c, err := tunnel.ClaimIn(base, "1", "ends")
	if err != nil {
		t.Fatal(err)
	}
	c.SetName("x")
	if got, err := os.ReadFile(path); err != nil || string(got) != fmt.Sprintf("%d x\n", os.Getpid()) {
		t.Errorf("the file says %q, %v", got, err)
	}
	c.Release()
	c.Release()
	if left, err := os.ReadDir(filepath.Join(base, "goipip")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A removed file is not taken for the claim's, nor a new one removed by the holder
// of an old one.
func TestHazard19_Removed(t *testing.T) {
	base := t.TempDir()
	first, err := tunnel.ClaimIn(base, "1", "ends")
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.RemoveAll(filepath.Join(base, "goipip")))
	second, err := tunnel.ClaimIn(base, "1", "ends")
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	if c, err := tunnel.ClaimIn(base, "1", "ends"); !errors.Is(err, tunnel.ErrHeld) {
		t.Errorf("a held claim is given again: %v, %v", c, err)
	}
	second.Release()
}

// However many claim and release at once, one has it at a time, nobody is refused
// by anything but a holder, and nothing is left.
func TestHazard19_Race(t *testing.T) {
	const claimants, claims = 4, 500
	base := t.TempDir()
	var wg sync.WaitGroup
	var holders, held atomic.Int32
	for i := range claimants {
		name := []string{"ends", "ends", "ends", "other"}[i] // who only shares the directory
		wg.Go(func() {
			for n := 0; n < claims; {
				c, err := tunnel.ClaimIn(base, "1", name)
				switch {
				case errors.Is(err, tunnel.ErrHeld) && name != "other":
					held.Add(1)
					continue
				case err != nil:
					t.Error(err)
					return
				}
				n++
				if name != "other" {
					if h := holders.Add(1); h != 1 {
						t.Errorf("%d have the claim", h)
					}
					c.SetName("tun01")
					holders.Add(-1)
				}
				c.Release()
			}
		})
	}
	wg.Wait()
	t.Logf("held by another: %d times", held.Load())
	if left, err := os.ReadDir(filepath.Join(base, "goipip")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A directory that another user owns, can write to, or may have placed, is not used.
func TestHazard19_Untrusted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	const nobody = 65534
	for name, c := range map[string]struct {
		prepare func(base string) error
		ok      bool
	}{
		"empty":              {func(string) error { return nil }, true},
		"made before":        {func(base string) error { return os.MkdirAll(base+"/goipip/1", 0o755) }, true},
		"sticky":             {func(base string) error { return os.Chmod(base, 0o777|os.ModeSticky) }, true},
		"writable by others": {func(base string) error { return os.Chmod(base, 0o777) }, false},
		"of another user":    {func(base string) error { return os.Chown(base, nobody, nobody) }, false},
		"missing":            {func(base string) error { return os.Remove(base) }, false},
		"made by another user": {func(base string) error {
			return errors.Join(os.Chmod(base, 0o777|os.ModeSticky), os.Mkdir(base+"/goipip", 0o755), os.Chown(base+"/goipip", nobody, 0))
		}, false},
		"given to another user by root": {func(base string) error {
			return errors.Join(os.Mkdir(base+"/goipip", 0o755), os.Chown(base+"/goipip", nobody, 0))
		}, true},
		"made for everybody": {func(base string) error {
			return errors.Join(os.Mkdir(base+"/goipip", 0o755), os.Chmod(base+"/goipip", 0o777))
		}, false},
		"symbolic link": {func(base string) error {
			return errors.Join(os.Mkdir(base+"/x", 0o755), os.Symlink("x", base+"/goipip"))
		}, false},
		"dangling symbolic link": {func(base string) error { return os.Symlink("x", base+"/goipip") }, false},
		"file":                   {func(base string) error { return os.WriteFile(base+"/goipip", nil, 0o600) }, false},
		"symbolic link in place": {func(base string) error {
			return errors.Join(os.MkdirAll(base+"/goipip/1", 0o755), os.Symlink(base+"/x", base+"/goipip/1/ends"))
		}, false},
		"namespace symbolic link": {func(base string) error {
			return errors.Join(os.MkdirAll(base+"/goipip", 0o755), os.Symlink(base, base+"/goipip/1"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			must(t, c.prepare(base))
			claim, err := tunnel.ClaimIn(base, "1", "ends")
			if (err == nil) != c.ok || errors.Is(err, tunnel.ErrHeld) {
				t.Errorf("%v, want a claim: %v", err, c.ok)
			}
			if err == nil {
				claim.Release()
			}
			if _, err := os.Stat(base + "/x/1"); err == nil {
				t.Error("something was made behind a symbolic link")
			}
		})
	}
}
