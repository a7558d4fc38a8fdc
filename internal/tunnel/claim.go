package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// claimed keeps a pair of outer addresses to one tunnel of a network namespace
// (O7): two tunnels between the same ends would each deliver every packet. It is a
// lock (flock(2)) on the file
//
//	/run/goipip/NAMESPACE/LOCAL-REMOTE
//
// (any-REMOTE without a local address, O11) where only root can make files, so that no other user can keep a tunnel from
// starting. NAMESPACE is the inode of the network namespace, as ls -l
// /proc/self/ns/net shows it. The file names the process and the link that hold it.
// The kernel drops the lock when the process ends, however it ends.
type claimed struct {
	file    *os.File // nil where there is none
	missing error    // why there is none
}

// claim claims the ends of cfg's tunnel in the network namespace of the calling
// thread. If another tunnel has them, the error is syscall.EEXIST and says which.
// Where no claim is possible, the tunnel may start without: see claimed.missing.
// The caller releases the claim.
func claim(cfg Config) (*claimed, error) {
	namespace, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return &claimed{missing: err}, nil
	}
	dir := fmt.Sprint(namespace.Sys().(*syscall.Stat_t).Ino)
	ends := fmt.Sprintf("%s-%v", cfg.LocalText(), cfg.Remote)
	var missing []error
	for _, base := range claimBases() {
		file, err := lockFile(base, dir, ends)
		if err == nil {
			c := &claimed{file: file}
			c.write(fmt.Sprintln(os.Getpid()))
			return c, nil
		}
		if errors.Is(err, ErrHeld) {
			return nil, fmt.Errorf("tunnel from %s to %v: %w: %w", cfg.LocalText(), cfg.Remote, syscall.EEXIST, err)
		}
		missing = append(missing, err)
	}
	return &claimed{missing: errors.Join(missing...)}, nil
}

// claimBases are the directories to hold claims, the best first. Where root may not
// write to /run, as in a user namespace, a user's own directory serves that user.
func claimBases() []string {
	bases := []string{"/run"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		bases = append(bases, dir)
	}
	return bases
}

// setName adds the name of the link, for the message to other tunnels that want the same
// ends. If that fails, the message is without.
func (c *claimed) setName(name string) {
	if c.file != nil {
		c.write(fmt.Sprintln(os.Getpid(), name))
	}
}

// write replaces what the file says. Only messages depend on it, so errors are
// ignored.
func (c *claimed) write(s string) {
	if n, err := c.file.WriteAt([]byte(s), 0); err == nil {
		_ = c.file.Truncate(int64(n))
	}
}

// release gives the ends up and removes the file. It does nothing the second time,
// nor for a nil claim.
func (c *claimed) release() {
	if c == nil || c.file == nil {
		return
	}
	// Still locked, so a process that opens the file meanwhile finds it removed (lockFile).
	if path := c.file.Name(); isAt(c.file, path) {
		os.Remove(path)
		os.Remove(filepath.Dir(path)) // refused unless it is empty
	}
	c.file.Close()
	c.file = nil
}

// ErrHeld means that another tunnel of this network namespace has the same two ends.
var ErrHeld = errors.New("same two ends")

// heldError is ErrHeld with the content of the file.
type heldError struct {
	pid  int    // 0 if unknown
	link string // "" if unknown
}

func (e heldError) Is(target error) bool { return target == ErrHeld }

func (e heldError) Error() string {
	switch {
	case e.link != "":
		return fmt.Sprintf("goipip with process id %d has the same two ends (ip link delete %s)", e.pid, e.link)
	case e.pid != 0:
		return fmt.Sprintf("goipip with process id %d has the same two ends (kill %[1]d)", e.pid)
	}
	return "another goipip has the same two ends (ip link delete)"
}

// lockFile creates and locks the file base/goipip/dir/name. The error is ErrHeld if
// it is locked already, and another one where base is not safe or not writable.
func lockFile(base, dir, name string) (*os.File, error) {
	if err := trustBase(base); err != nil {
		return nil, err
	}
	top := filepath.Join(base, "goipip")
	dir = filepath.Join(top, dir)
	path := filepath.Join(dir, name)
	// Each further attempt means that another process has just released a claim.
	const attempts = 100
	for range attempts {
		if err := makeDir(top); err != nil {
			return nil, err
		}
		if err := makeDir(dir); errors.Is(err, fs.ErrNotExist) {
			continue // it was removed between two steps of makeDir
		} else if err != nil {
			return nil, err
		}
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // dir was removed since
		} else if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && isAt(file, path) {
			return file, nil
		}
		held := readHeld(file)
		file.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, held
		} else if err != nil {
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		// The file was removed between open and flock.
	}
	return nil, fmt.Errorf("lock %s: it is removed again and again", path)
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

func readHeld(file *os.File) (e heldError) {
	var b [64]byte
	n, _ := file.ReadAt(b[:], 0) // io.EOF after what is there
	_, _ = fmt.Sscanln(string(b[:n]), &e.pid, &e.link)
	return e
}

// trustBase returns an error unless only root and this user can replace what
// is in the directory: with the sticky bit, a file's owner only (inode(7)).
func trustBase(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if uid != 0 && uid != os.Geteuid() || info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s: not a directory that only root and this user can write to", dir)
	}
	return nil
}

// makeDir makes dir unless it exists, and returns an error unless it is a directory
// that only this user owns and can write to.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir) // a symbolic link is none
	if err != nil {
		return err
	}
	if !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() || info.Mode()&0o022 != 0 {
		return fmt.Errorf("%s: not a directory that only this user can write to", dir)
	}
	return nil
}
