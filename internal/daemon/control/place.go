package control

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"goipip/internal/rundir"

	"golang.org/x/sys/unix"
)

// socketName is the name of the daemon's socket in the directory of its network namespace.
// Processes that take no further tunnels have socketName-XXXXXXXX.
const socketName = "control"

// maxPath is the longest path of a socket, in bytes (unix(7)).
const maxPath = 107

// place is where a daemon's socket is, and its locks: NAME.lock while it runs, NAME.start
// while somebody starts it.
type place struct {
	dir  rundir.Dir
	name string
}

// places returns where a daemon's socket may be, the best first: path, or without one the
// directories of the calling thread's network namespace.
func places(path string) ([]place, error) {
	if path != "" {
		if path, err := filepath.Abs(path); err != nil || len(path) > maxPath {
			return nil, fmt.Errorf("control socket %s: a path of %d bytes, and the kernel takes at most %d", path, len(path), maxPath)
		}
		return []place{{rundir.At(filepath.Dir(path)), filepath.Base(path)}}, nil
	}
	dirs, err := rundir.Dirs()
	if err != nil {
		return nil, err
	}
	var all []place
	for _, d := range dirs {
		all = append(all, place{d, socketName})
	}
	return all, nil
}

func (p place) path() string { return p.dir.Path(p.name) }

// Listener is a socket that listens.
type Listener struct {
	socket *net.UnixListener
	place  place
	lock   *rundir.Lock // nil for a process that takes no further tunnels
}

// Path returns the path of the socket.
func (l *Listener) Path() string { return l.place.path() }

// Close removes the socket, and refuses new clients. The place is still taken until Release.
func (l *Listener) Close() {
	os.Remove(l.Path())
	l.socket.Close()
}

// Release lets another daemon take the place.
func (l *Listener) Release() {
	if l.lock != nil {
		l.lock.Release()
	}
	l.place.dir.Tidy()
}

// takeOver is how long a daemon that starts waits for one that ends.
const takeOver = time.Second

// ErrRuns means that another daemon runs in the network namespace.
var ErrRuns = errors.New("another goipip daemon runs in this network namespace")

// Listen makes the socket of a daemon, of which a network namespace has one: at path, or
// without one where clients look for it. What a killed daemon left is replaced. The error
// is ErrRuns if there is another daemon.
func Listen(path string) (*Listener, error) {
	return firstPlace(path, func(p place) (*Listener, error) {
		lock, err := p.dir.LockWithin(takeOver, p.name+".lock")
		var locked *rundir.LockedError
		if errors.As(err, &locked) {
			return nil, fmt.Errorf("%w (process id %s)", ErrRuns, strings.TrimSpace(locked.Content))
		} else if err != nil {
			return nil, err
		}
		lock.Write(fmt.Sprintln(os.Getpid()))
		socket, err := p.listen()
		if err != nil {
			lock.Release()
			return nil, err
		}
		return &Listener{socket, p, lock}, nil
	})
}

// ListenBeside makes the socket of a process that takes no further tunnels: at path, or
// beside that of the daemon.
func ListenBeside(path string) (*Listener, error) {
	if path != "" {
		return Listen(path)
	}
	return firstPlace("", func(p place) (*Listener, error) {
		// The lock makes the directory, and keeps it until there is a socket in it.
		lock, err := p.dir.LockWithin(takeOver, p.name+".start")
		if err != nil {
			return nil, err
		}
		defer lock.Release()
		p.name = fmt.Sprintf("%s-%08x", socketName, rand.Uint32())
		socket, err := p.listen()
		if err != nil {
			return nil, err
		}
		return &Listener{socket, p, nil}, nil
	})
}

// firstPlace returns what listen does at the first place that permits it.
func firstPlace(path string, listen func(place) (*Listener, error)) (*Listener, error) {
	all, err := places(path)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range all {
		l, err := listen(p)
		if err == nil || errors.Is(err, ErrRuns) {
			return l, err
		}
		errs = append(errs, fmt.Errorf("control socket %s: %w", p.path(), err))
	}
	return nil, errors.Join(errs...)
}

// listen makes the socket. It appears at its place when it listens, so that one that
// refuses is always one whose process is gone.
func (p place) listen() (*net.UnixListener, error) {
	hidden := p.dir.Path(fmt.Sprintf(".%s-%08x", p.name, rand.Uint32()))
	if len(hidden) > maxPath {
		return nil, fmt.Errorf("a path of %d bytes, and the kernel takes at most %d", len(hidden), maxPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, p.path())); err != nil {
		l.Close()
		os.Remove(hidden)
		return nil, err
	}
	return l, nil
}

// dial connects to the socket. The error is fs.ErrNotExist if nobody listens there.
func (p place) dial() (*Client, error) {
	users, err := p.dir.Trust()
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.path(), Net: "unix"})
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%s: %w", p.path(), errGone)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("control socket %s: %w: only root and the daemon's own user may use it", p.path(), os.ErrPermission)
	}
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn, users); err != nil {
		conn.Close()
		return nil, fmt.Errorf("control socket %s: %w", p.path(), err)
	}
	return newClient(conn), nil
}

// errGone is fs.ErrNotExist: the socket is left of a process that was killed.
var errGone = fmt.Errorf("nobody listens: %w", fs.ErrNotExist)

// checkPeer returns an error unless the process at the other end is of one of users.
func checkPeer(c *net.UnixConn, users []int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); controlErr != nil {
		return controlErr
	}
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if !slices.Contains(users, int(cred.Uid)) {
		return fmt.Errorf("user %d: %w: only root and the daemon's own user may use it", cred.Uid, os.ErrPermission)
	}
	return nil
}
