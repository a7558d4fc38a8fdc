// Package rundir is the directory of a network namespace below /run/goipip, where
// processes in it find each other: by locks on files, and by sockets.
//
// Only root, or the user whose directory it is, can make files there, so that no other
// user can keep a tunnel from starting or answer in a daemon's place. /run/goipip may be a
// service's user's, to whom only root can have given it (RuntimeDirectory= in systemd.exec(5)).
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// ErrLocked means that another process holds a lock.
var ErrLocked = errors.New("locked")

// Dir is the directory BASE/goipip/NAMESPACE, which exists while there is something in it.
// NAMESPACE is the inode of the network namespace, as ls -l /proc/self/ns/net shows it. Or
// it is one that somebody else made, see At.
type Dir struct {
	base      string
	namespace string // empty for base itself
}

// Dirs returns the directories for the network namespace of the calling thread, the best
// first. Where root may not write to /run, as in a user namespace, the user's own directory
// (XDG_RUNTIME_DIR) serves that user.
func Dirs() ([]Dir, error) {
	info, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	namespace := strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)
	dirs := []Dir{{"/run", namespace}}
	if own := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(own) {
		dirs = append(dirs, Dir{own, namespace})
	}
	return dirs, nil
}

// In returns the directory below base.
func In(base, namespace string) Dir { return Dir{base, namespace} }

// At returns the directory dir itself, which is never made or removed.
func At(dir string) Dir { return Dir{base: dir} }

// own returns the directories that are goipip's.
func (d Dir) own() []string {
	if d.namespace == "" {
		return nil
	}
	top := filepath.Join(d.base, "goipip")
	return []string{top, filepath.Join(top, d.namespace)}
}

// Path returns the path of a file in d.
func (d Dir) Path(name string) string {
	if d.namespace == "" {
		return filepath.Join(d.base, name)
	}
	return filepath.Join(d.base, "goipip", d.namespace, name)
}

// Trust returns an error unless only trustworthy users can have made what is in d: root, this
// user, and for root the one to whom root has given BASE/goipip. It returns these users. A
// directory that does not exist is an fs.ErrNotExist.
func (d Dir) Trust() (users []int, err error) {
	if err := trustBase(d.base); err != nil {
		return nil, err
	}
	users = []int{0, os.Geteuid(), d.keeper()}
	for _, dir := range d.own() {
		if err := trust(dir, users...); err != nil {
			return nil, err
		}
	}
	return users, nil
}

// keeper returns the user to whom BASE/goipip belongs, which for all others but root is this
// user. Where nobody but root can write to BASE, only root can have given it to another.
func (d Dir) keeper() int {
	me := os.Geteuid()
	if me != 0 || d.namespace == "" {
		return me
	}
	base, err := os.Stat(d.base)
	if err != nil || owner(base) != 0 || base.Mode()&0o022 != 0 {
		return me
	}
	top, err := os.Lstat(d.own()[0])
	if err != nil {
		return me
	}
	return owner(top)
}

func owner(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// make makes d unless it exists. It fails with fs.ErrNotExist if it is removed meanwhile.
func (d Dir) make() error {
	if err := trustBase(d.base); err != nil {
		return err
	}
	for _, dir := range d.own() {
		err := os.Mkdir(dir, 0o755)
		keeper := d.keeper()
		if err == nil && keeper != os.Geteuid() {
			err = os.Lchown(dir, keeper, -1) // who is to find the locks and the socket of root here
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := trust(dir, os.Geteuid(), keeper); err != nil {
			return err
		}
	}
	return nil
}

// Lock is a lock on a file, which ends with the process, however that ends.
type Lock struct {
	dir  Dir
	file *os.File
}

// retryInterval is how often LockWithin tries again.
const retryInterval = 2 * time.Millisecond

// LockWithin is Lock, but waits for the lock.
func (d Dir) LockWithin(timeout time.Duration, name string) (*Lock, error) {
	for end := time.Now().Add(timeout); ; time.Sleep(retryInterval) {
		l, err := d.Lock(name)
		if !errors.Is(err, ErrLocked) || time.Now().After(end) {
			return l, err
		}
	}
}

// Lock makes and locks a file of d. It fails with a *LockedError, which is ErrLocked, if
// another process holds the lock, or another user has made the file, and otherwise if d is not
// safe or cannot be written to. The caller releases the lock.
func (d Dir) Lock(name string) (*Lock, error) {
	path := d.Path(name)
	// Each further attempt means that another process has just released a lock.
	const attempts = 100
	for range attempts {
		if err := d.make(); errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(d.base); err != nil {
				return nil, err
			}
			continue // it was removed between two steps of make
		} else if err != nil {
			return nil, err
		}
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // d was removed since
		} else if _, statErr := os.Lstat(path); errors.Is(err, fs.ErrPermission) && statErr == nil {
			return nil, &LockedError{} // root's, in this user's directory
		} else if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && isAt(file, path) {
			return &Lock{d, file}, nil
		}
		content := read(file)
		file.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, &LockedError{content}
		} else if err != nil {
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		// The file was removed between open and flock.
	}
	return nil, fmt.Errorf("lock %s: it is removed again and again", path)
}

// LockedError is ErrLocked.
type LockedError struct {
	Content string // of the file: what the holder wrote
}

func (e *LockedError) Error() string { return ErrLocked.Error() }

// Is reports whether target is ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Write replaces the content of the file, which only messages depend on: errors are
// ignored.
func (l *Lock) Write(s string) {
	if n, err := l.file.WriteAt([]byte(s), 0); err == nil {
		_ = l.file.Truncate(int64(n))
	}
}

// Release removes the file and gives up the lock. It does nothing the second time.
func (l *Lock) Release() {
	if l.file == nil {
		return
	}
	// Still locked, so a process that opens the file meanwhile finds it removed (Lock).
	if path := l.file.Name(); isAt(l.file, path) {
		os.Remove(path)
		l.dir.Tidy()
	}
	l.file.Close()
	l.file = nil
}

// Tidy removes d if it is empty.
func (d Dir) Tidy() {
	if d.namespace != "" {
		os.Remove(d.Path(""))
	}
}

// isAt reports whether path still leads to file.
func isAt(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, there)
}

// read returns what the holder of a lock wrote.
func read(file *os.File) string {
	var b [64]byte
	n, _ := file.ReadAt(b[:], 0) // io.EOF after what is there
	return string(b[:n])
}

// trustBase returns an error unless only root and this user can replace what
// is in the directory: with the sticky bit, a file's owner only (inode(7)).
func trustBase(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid := owner(info)
	if uid != 0 && uid != os.Geteuid() || info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s: not a directory that only root and this user can write to", dir)
	}
	return nil
}

// trust returns an error unless dir is a directory that only its owner can write to, one of
// the given users.
func trust(dir string, owners ...int) error {
	info, err := os.Lstat(dir) // a symbolic link is none
	if err != nil {
		return err
	}
	owned := slices.Contains(owners, owner(info))
	if !info.IsDir() || !owned || info.Mode()&0o022 != 0 {
		return fmt.Errorf("%s: not a directory that only this user can write to", dir)
	}
	return nil
}
