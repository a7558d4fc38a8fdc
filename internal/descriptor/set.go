package descriptor

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// idleAfter is how long a descriptor may stay empty before it counts as idle.
	idleAfter = 100 * time.Millisecond
	// looksPerIdle is how often the busy descriptors are looked at for one look at the
	// idle ones, while the busy ones keep the goroutine from sleeping.
	looksPerIdle = 8
)

// Set lets one goroutine wait until any of many descriptors is readable. T is what the
// goroutine knows each by.
//
// Idle descriptors wait in an epoll(7) instance. One that becomes readable is taken out of
// it, and counts as busy until it has been empty for a while: busy descriptors, and the
// epoll instance, are waited for by poll(2). So a packet causes no notification
// while the goroutine works (see FD), whatever the number of idle descriptors. With
// epoll alone, level-triggered or one-shot, one busy TUN among 1000 passed 5 to 7 % fewer
// packets; with poll alone, a round trip took five times as long.
type Set[T any] struct {
	epoll int
	wake  int // an eventfd, readable when there are removals, and after Close

	changed atomic.Bool // something was added, is to be removed, it was poked, or it is closed
	anyIdle atomic.Bool

	mu       sync.Mutex
	idle     map[int32]*member[T] // by descriptor
	removals []removal
	poked    bool // and not answered yet
	closed   bool

	// For the goroutine that waits.
	busy      []*member[T]
	polls     []unix.PollFd
	ready     []T
	events    []unix.EpollEvent
	hot       bool // it never slept long
	looks     int  // left before it sleeps
	sinceIdle int  // looks at the busy descriptors since the idle ones were looked at
	swept     time.Time
}

type member[T any] struct {
	fd     int32
	item   T
	active bool // was readable since the last sweep
}

type removal struct {
	fd   int32
	done chan struct{}
}

// NewSet returns an empty Set.
func NewSet[T any]() (*Set[T], error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &Set[T]{
		epoll:  epoll,
		wake:   wake,
		idle:   map[int32]*member[T]{},
		events: make([]unix.EpollEvent, 64),
	}, nil
}

// Add adds a descriptor, which must not be closed before it is removed. Any goroutine may
// call it.
func (s *Set[T]) Add(f *FD, item T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	err := s.addIdle(&member[T]{fd: int32(f.fd), item: item})
	s.wakeUp() // perhaps the first idle one
	return err
}

// addIdle needs mu.
func (s *Set[T]) addIdle(m *member[T]) error {
	s.idle[m.fd] = m
	err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, int(m.fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: m.fd})
	if err != nil {
		delete(s.idle, m.fd)
	}
	s.anyIdle.Store(len(s.idle) > 0)
	return os.NewSyscallError("epoll_ctl", err)
}

// takeIdle takes a descriptor out of the idle ones; nil if it is none. It needs mu.
func (s *Set[T]) takeIdle(fd int32) *member[T] {
	m := s.idle[fd]
	if m != nil {
		delete(s.idle, fd)
		s.anyIdle.Store(len(s.idle) > 0)
		_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, int(fd), nil)
	}
	return m
}

// Remove removes a descriptor. When it returns, the Set does not use the descriptor any
// more, and Wait does not return its item again; what Wait returned last may be in use.
// To remove one that is not in the Set does nothing. Any goroutine may call it but the one
// that waits, see Drop.
func (s *Set[T]) Remove(f *FD) {
	s.mu.Lock()
	if s.closed || s.takeIdle(int32(f.fd)) != nil {
		s.mu.Unlock()
		return
	}
	r := removal{fd: int32(f.fd), done: make(chan struct{})}
	s.removals = append(s.removals, r)
	s.wakeUp()
	s.mu.Unlock()
	<-r.done
}

// Drop is Remove for the goroutine that waits.
func (s *Set[T]) Drop(f *FD) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takeIdle(int32(f.fd))
	s.dropBusy(int32(f.fd))
}

func (s *Set[T]) dropBusy(fd int32) {
	s.busy = slices.DeleteFunc(s.busy, func(m *member[T]) bool { return m.fd == fd })
}

// wakeUp has Wait call change, also if it sleeps. It needs mu.
func (s *Set[T]) wakeUp() {
	s.changed.Store(true)
	// An eventfd refuses only what overflows it (eventfd(2)).
	_, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// Poke asks the goroutine that waits for a sign of life, which its next Wait, or the one that
// it is in, gives. Any goroutine may call it.
func (s *Set[T]) Poke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.poked = true
		s.wakeUp()
	}
}

// Answered reports whether the last Poke has been answered, or the Set is closed.
func (s *Set[T]) Answered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.poked || s.closed
}

// Close ends Wait. The descriptors stay open. Closing once more does nothing.
func (s *Set[T]) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.wakeUp()
}

// Wait returns the items whose descriptors may be readable, or broken. It reports false
// after Close, and has closed what the Set itself had open then. What it returns is valid
// until the next call.
//
// progress tells whether there was anything to read since the last Wait. As long as there
// is, or was a moment ago, Wait does not sleep (see Poller).
func (s *Set[T]) Wait(progress bool) (ready []T, ok bool) {
	if !s.change() {
		return nil, false
	}
	if progress {
		s.looks = 0
		if s.hot {
			s.looks = polls
		}
		if len(s.busy) == 1 {
			s.busy[0].active = true
		}
	} else if s.looks > 0 {
		s.looks--
		yield()
	} else {
		return s.sleep()
	}
	s.sinceIdle++
	if len(s.busy) == 1 && (s.sinceIdle < looksPerIdle || !s.anyIdle.Load()) {
		return append(s.ready[:0], s.busy[0].item), true // no need to ask
	}
	return s.look(0), true
}

// change does what other goroutines asked for, and reports false after Close.
func (s *Set[T]) change() bool {
	if !s.changed.Load() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.removals {
		s.takeIdle(r.fd)
		s.dropBusy(r.fd)
		close(r.done)
	}
	s.removals = s.removals[:0]
	s.poked = false
	s.changed.Store(s.closed)
	if s.closed && s.epoll >= 0 {
		unix.Close(s.epoll)
		unix.Close(s.wake)
		s.epoll = -1
	}
	return !s.closed
}

// sleep waits as long as it takes.
func (s *Set[T]) sleep() ([]T, bool) {
	for {
		start := time.Now()
		if start.Sub(s.swept) >= idleAfter {
			s.swept = start
			s.sweep()
		}
		ready := s.look(-1)
		s.hot = time.Since(start) < busyTime
		if !s.change() {
			return nil, false
		}
		if len(ready) > 0 {
			s.looks = 0
			return ready, true
		}
	}
}

// sweep has descriptors that stayed empty count as idle. The only one there is stays.
func (s *Set[T]) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.busy) == 1 && len(s.idle) == 0 {
		return
	}
	s.busy = slices.DeleteFunc(s.busy, func(m *member[T]) bool {
		if m.active {
			m.active = false
			return false
		}
		return s.addIdle(m) == nil
	})
}

// look asks poll(2), which waits for a time in ms, or with −1 without end.
func (s *Set[T]) look(timeout int) []T {
	s.sinceIdle = 0
	epoll := int32(-1) // which poll(2) passes over: to look at an empty instance costs 0.2 µs
	if s.anyIdle.Load() {
		epoll = int32(s.epoll)
	}
	s.polls = append(s.polls[:0],
		unix.PollFd{Fd: epoll, Events: unix.POLLIN},
		unix.PollFd{Fd: int32(s.wake), Events: unix.POLLIN})
	for _, m := range s.busy {
		s.polls = append(s.polls, unix.PollFd{Fd: m.fd, Events: unix.POLLIN})
	}
	s.ready = s.ready[:0]
	if n, err := unix.Poll(s.polls, timeout); n == 0 || err != nil {
		return s.ready
	}
	for i, m := range s.busy {
		if s.polls[2+i].Revents != 0 {
			m.active = true
			s.ready = append(s.ready, m.item)
		}
	}
	if s.polls[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(s.wake, count[:])
	}
	if s.polls[0].Revents != 0 {
		s.lookAtIdle()
	}
	return s.ready
}

// lookAtIdle has those of the idle descriptors that are readable count as busy.
func (s *Set[T]) lookAtIdle() {
	n, err := unix.EpollWait(s.epoll, s.events, 0)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events[:n] {
		if m := s.takeIdle(e.Fd); m != nil {
			m.active = true
			s.busy = append(s.busy, m)
			s.ready = append(s.ready, m.item)
		}
	}
}
