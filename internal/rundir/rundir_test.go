package rundir_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"goipip/internal/netlab/labtest"
	"goipip/internal/rundir"
)

const someone = 65534

// give has the directory goipip of a new base belong to someone. It needs "root".
func give(t *testing.T, mode os.FileMode) (base string) {
	t.Helper()
	labtest.Need(t, "root")
	base = t.TempDir()
	top := filepath.Join(base, "goipip")
	if err := errors.Join(os.Mkdir(top, 0o755), os.Chmod(base, mode)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(top, someone, -1); errors.Is(err, syscall.EINVAL) {
		t.Skip("this user namespace has one user only")
	} else if err != nil {
		t.Fatal(err)
	}
	return base
}

// Root trusts the user to whom it has given the directory, and shares it with him.
func TestDir_Given(t *testing.T) {
	d := rundir.In(give(t, 0o755), "4026531840")
	lock, err := d.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	users, err := d.Trust()
	if err != nil || !slices.Contains(users, someone) {
		t.Errorf("root trusts %v, %v, want %d too", users, err, someone)
	}
	if info, err := os.Stat(d.Path("")); err != nil || info.Sys().(*syscall.Stat_t).Uid != someone {
		t.Errorf("the directory that root has made is %+v, %v, want that of user %d", info, err, someone)
	}
}

// Where others than root can make directories, one of another user's is not trusted.
func TestDir_NotGiven(t *testing.T) {
	for name, mode := range map[string]os.FileMode{"sticky": 0o777 | os.ModeSticky, "group": 0o775 | os.ModeSticky} {
		t.Run(name, func(t *testing.T) {
			d := rundir.In(give(t, mode), "4026531840")
			if users, err := d.Trust(); err == nil {
				t.Errorf("root trusts %v", users)
			}
			if lock, err := d.Lock("a"); err == nil {
				lock.Release()
				t.Error("root makes a file in a directory of another user's")
			}
		})
	}
}
