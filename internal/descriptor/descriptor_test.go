package descriptor_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/descriptor"
	"goipip/internal/netlab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// newPair returns an FD of one end of a pair of sockets, and the other end.
func newPair(t *testing.T) (f *descriptor.FD, peer int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err = descriptor.New(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		unix.Close(fds[1])
	})
	return f, fds[1]
}

// read reads one message, as long as that takes.
func read(f *descriptor.FD) (string, error) {
	fd, ok := f.Acquire()
	if !ok {
		return "", os.ErrClosed
	}
	defer f.Release()
	buf := make([]byte, 16)
	for {
		n, err := unix.Read(fd, buf)
		if err != unix.EAGAIN {
			return string(buf[:max(n, 0)]), err
		}
		if !f.Wait(descriptor.In) {
			return "", os.ErrClosed
		}
	}
}

func TestWait(t *testing.T) {
	f, peer := newPair(t)
	for _, want := range []string{"one", "two"} {
		got := make(chan string)
		go func() {
			s, err := read(f)
			if err != nil {
				t.Error(err)
			}
			got <- s
		}()
		labtest.WaitParked(t, "descriptor_test.read", 1)
		if _, err := unix.Write(peer, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s != want {
			t.Errorf("read %q, want %q", s, want)
		}
	}
}

// wait waits for a message, and reports whether f is still open, and how long it took.
func wait(f *descriptor.FD, timeout time.Duration) (open bool, waited time.Duration) {
	start := time.Now()
	if _, ok := f.Acquire(); !ok {
		return false, 0
	}
	defer f.Release()
	return f.WaitTimeout(descriptor.In, timeout), time.Since(start)
}

// WaitTimeout ends with the event, with Close, or when the time is up.
func TestWaitTimeout(t *testing.T) {
	f, peer := newPair(t)
	for _, timeout := range []time.Duration{0, 100 * time.Microsecond, 20 * time.Millisecond} {
		if open, waited := wait(f, timeout); !open || waited < timeout {
			t.Errorf("WaitTimeout(%v) = %v after %v", timeout, open, waited)
		}
	}
	if _, err := unix.Write(peer, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if open, waited := wait(f, time.Hour); !open || waited > 10*time.Second {
		t.Errorf("WaitTimeout with a message there = %v after %v", open, waited)
	}
	if s, err := read(f); s != "one" || err != nil {
		t.Errorf("read %q, %v", s, err)
	}

	closed := make(chan bool)
	go func() {
		open, _ := wait(f, time.Hour)
		closed <- !open
	}()
	labtest.WaitParked(t, "descriptor_test.wait", 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !labtest.Within(t, "the end of WaitTimeout", closed) {
		t.Error("WaitTimeout reports an open FD after Close")
	}
}

// Close ends all who wait, and those who come later get no descriptor: its number
// may be another's by then.
func TestClose(t *testing.T) {
	f, _ := newPair(t)
	const readers = 3
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			if _, err := read(f); !errors.Is(err, os.ErrClosed) {
				t.Errorf("read: %v, want %v", err, os.ErrClosed)
			}
		})
	}
	labtest.WaitParked(t, "descriptor_test.read", readers)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if fd, ok := f.Acquire(); ok {
		t.Errorf("Acquire = %d after Close", fd)
	}
	if err := f.Control(func(int) error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Control: %v, want %v", err, os.ErrClosed)
	}
}

// The duplicate lives on, without the file that the poller watches, and does not
// block.
func TestDup(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f, err := descriptor.Dup(r)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Control(func(fd int) error {
		_, err := unix.Read(fd, make([]byte, 1))
		return err
	}); err != unix.EAGAIN {
		t.Errorf("read of an empty pipe: %v, want %v", err, unix.EAGAIN)
	}
	if _, err := descriptor.Dup(r); err == nil {
		t.Error("a closed file was duplicated")
	}
	if _, err := w.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	if s, err := read(f); s != "late" || err != nil {
		t.Errorf("read %q, %v", s, err)
	}
}

func TestWait_Allocs(t *testing.T) {
	f, peer := newPair(t)
	one := []byte{1}
	buf := make([]byte, 1)
	failed := 0
	if allocs := testing.AllocsPerRun(100, func() {
		if _, err := unix.Write(peer, one); err != nil {
			failed++
		}
		fd, ok := f.Acquire()
		if !ok || !f.Wait(descriptor.In) {
			failed++
		}
		if n, err := unix.Read(fd, buf); n != 1 || err != nil {
			failed++
		}
		f.Release()
	}); allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
	if failed > 0 {
		t.Errorf("%d failures", failed)
	}
}

// A Poke is answered by the goroutine that waits, or looks, and by no other.
func TestPoke(t *testing.T) {
	f, peer := newPair(t)
	f.Poke()
	if f.Answered() {
		t.Error("a Poke is answered although nobody reads")
	}
	f.Answer()
	if !f.Answered() {
		t.Error("an answered Poke is not answered")
	}
	got := make(chan string)
	go func() {
		for range 2 {
			s, _ := read(f)
			got <- s
		}
	}()
	for range 3 {
		labtest.WaitParked(t, "descriptor_test.read", 1)
		f.Poke()
		labtest.WaitFor(t, "an answer", f.Answered)
	}
	if _, err := unix.Write(peer, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "one" {
		t.Errorf("after Pokes the reader gets %q", s)
	}
	labtest.WaitParked(t, "descriptor_test.read", 1)
	f.Close()
	labtest.Within(t, "the end of the read", got)
	f.Poke()
	if !f.Answered() {
		t.Error("a closed FD is waited for")
	}
}

// Whatever Pokes come at the same time, Close ends a Wait.
func TestPoke_AndClose(t *testing.T) {
	for range 3000 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f, err := descriptor.New(fd)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := read(f)
			ended <- err
		}()
		poked := make(chan struct{})
		go func() {
			defer close(poked)
			for range 20 {
				f.Poke()
			}
		}()
		f.Poke()
		f.Close()
		if err := labtest.Within(t, "the end of a Wait", ended); !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
		<-poked
	}
}
