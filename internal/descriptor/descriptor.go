// Package descriptor holds file descriptors that Go's poller does not watch.
//
// The poller waits with epoll(7), to which the kernel reports each packet that
// arrives at a descriptor or has left it (ep_poll_callback), even while no thread waits. With
// poll(2) it reports only to waiting threads, of which there are none under load: one TCP
// stream got 40 % faster by that.
package descriptor

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FD is a descriptor with one owner, which closes it, and any number of users.
type FD struct {
	fd     int
	stop   int          // an eventfd, readable once the FD is closed; −1 for an FD of Dup
	users  sync.RWMutex // each holds it for reading
	closed atomic.Bool
	poked  atomic.Bool // and not answered yet
}

// Events to wait for.
const (
	In  = unix.POLLIN
	Out = unix.POLLOUT
)

// New takes ownership of fd, even on error, and makes it non-blocking.
func New(fd int) (*FD, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	f := &FD{fd: fd, stop: stop}
	if err := unix.SetNonblock(fd, true); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_SETFL", err)
	}
	return f, nil
}

// Dup returns a duplicate of c's descriptor, to be waited for in a Set: its Wait must not be
// called. The caller closes c, and with it what Go's poller watches.
func Dup(c syscall.Conn) (f *FD, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		var dup int
		if dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			err = os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
			return
		}
		if err = unix.SetNonblock(dup, true); err != nil {
			unix.Close(dup)
			err = os.NewSyscallError("fcntl F_SETFL", err)
			return
		}
		f = &FD{fd: dup, stop: -1}
	})
	if ctlErr != nil {
		return nil, ctlErr
	}
	return f, err
}

// Acquire returns the descriptor, which stays open until Release. It reports false
// once the FD is closed; there is nothing to release then.
func (f *FD) Acquire() (fd int, ok bool) {
	f.users.RLock()
	if f.closed.Load() {
		f.users.RUnlock()
		return -1, false
	}
	return f.fd, true
}

// Release ends what Acquire began.
func (f *FD) Release() { f.users.RUnlock() }

// Wait waits, between Acquire and Release, for In or Out. An error always ends it; the
// next call on the descriptor reports the error. Wait reports false once the FD is
// closed.
func (f *FD) Wait(event int16) bool {
	fds := f.pollFds(event)
	for {
		_, err := unix.Poll(fds[:], -1)
		if f.closed.Load() {
			return false
		}
		if err == nil && fds[0].Revents != 0 {
			return true
		}
		if fds[1].Revents != 0 && f.answer() {
			return false
		}
	}
}

// answer answers a Poke that ended poll(2), and reports whether the FD is closed: reading
// the eventfd may have taken Close's value.
func (f *FD) answer() (closed bool) {
	var count [8]byte
	_, _ = unix.Read(f.stop, count[:])
	f.Answer()
	return f.closed.Load()
}

// Poke asks the goroutine that reads an FD of New for a sign of life: its Wait, also one that
// it is in, or its call of Answer gives one. Any goroutine may call it, but not for an FD that
// is waited for by WaitTimeout.
func (f *FD) Poke() {
	if _, ok := f.Acquire(); !ok {
		return
	}
	defer f.Release()
	f.poked.Store(true)
	// An eventfd refuses only what overflows it (eventfd(2)).
	_, _ = unix.Write(f.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// Answer answers a Poke, for a goroutine that does not come to Wait while there is work.
func (f *FD) Answer() {
	if f.poked.Load() {
		f.poked.Store(false)
	}
}

// Answered reports whether the last Poke has been answered, or the FD is closed.
func (f *FD) Answered() bool { return !f.poked.Load() || f.closed.Load() }

// WaitTimeout is Wait for at most timeout, rounded up to whole milliseconds. It
// reports false only once the FD is closed: after a timeout the caller repeats the
// call that it waited for, and sees from that whether it waited in vain.
func (f *FD) WaitTimeout(event int16, timeout time.Duration) bool {
	fds := f.pollFds(event)
	for deadline := time.Now().Add(timeout); ; {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll(fds[:], int((left+time.Millisecond-1)/time.Millisecond))
		if f.closed.Load() {
			return false
		}
		if err == nil && (n == 0 || fds[0].Revents != 0) {
			return true
		}
	}
}

// pollFds returns what to poll(2) for event and for Close.
func (f *FD) pollFds(event int16) [2]unix.PollFd {
	return [2]unix.PollFd{{Fd: int32(f.fd), Events: event}, {Fd: int32(f.stop), Events: unix.POLLIN}}
}

// Control calls do with the descriptor. The error is do's, or os.ErrClosed.
func (f *FD) Control(do func(fd int) error) error {
	fd, ok := f.Acquire()
	if !ok {
		return os.ErrClosed
	}
	defer f.Release()
	return do(fd)
}

// Close ends all Waits, waits until it is not in use, and closes it.
// Closing once more does nothing.
func (f *FD) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	if f.stop >= 0 {
		// An eventfd refuses only what overflows it (eventfd(2)).
		_, _ = unix.Write(f.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	f.users.Lock()
	defer f.users.Unlock()
	if f.stop >= 0 {
		unix.Close(f.stop)
	}
	return os.NewSyscallError("close", unix.Close(f.fd))
}
