package descriptor_test

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/descriptor"
	"goipip/internal/netlab/labtest"
)

// pipes is a Set of some descriptors, each known by its number, with the other ends.
type pipes struct {
	*descriptor.Set[int]
	ends  []*descriptor.FD
	peers []int
}

func newPipes(t testing.TB, n int) *pipes {
	t.Helper()
	set, err := descriptor.NewSet[int]()
	if err != nil {
		t.Fatal(err)
	}
	p := &pipes{Set: set}
	for i := range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f, err := descriptor.New(fds[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			f.Close()
			unix.Close(fds[1])
		})
		p.ends, p.peers = append(p.ends, f), append(p.peers, fds[1])
		if err := p.Add(f, i); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *pipes) send(t testing.TB, i int) {
	t.Helper()
	if _, err := unix.Write(p.peers[i], []byte{byte(i)}); err != nil {
		t.Fatal(err)
	}
}

// read reads what there is at end i, and reports whether that was anything.
func (p *pipes) read(i int) (some bool) {
	_ = p.ends[i].Control(func(fd int) error {
		var b [1]byte
		for {
			if _, err := unix.Read(fd, b[:]); err != nil {
				return err
			}
			some = true
		}
	})
	return some
}

// next returns the number of the next end that has something, and reads that.
func (p *pipes) next(t testing.TB, progress bool) []int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); progress = false {
		ready, ok := p.Wait(progress)
		if !ok {
			t.Fatal("Wait = false before Close")
		}
		var got []int
		for _, i := range ready {
			if p.read(i) {
				got = append(got, i)
			}
		}
		if len(got) > 0 {
			return got
		}
	}
	t.Fatal("nothing is ready")
	return nil
}

// Each descriptor is found, idle or busy, one after the other and all at once.
func TestSet(t *testing.T) {
	const n = 200 // more than one epoll_wait returns
	p := newPipes(t, n)
	progress := false
	for range 3 {
		for i := range n {
			p.send(t, i)
			if got := p.next(t, progress); !slices.Equal(got, []int{i}) {
				t.Fatalf("ready: %v, want %d", got, i)
			}
			progress = true
		}
	}
	all := map[int]bool{}
	for i := range n {
		p.send(t, i)
	}
	for len(all) < n {
		for _, i := range p.next(t, progress) {
			all[i] = true
		}
	}
}

// A descriptor that always has something does not keep the others from being found.
func TestSet_BusyOneStarvesNobody(t *testing.T) {
	p := newPipes(t, 3)
	p.send(t, 0)
	p.next(t, false)
	p.send(t, 2)
	for range 100 {
		p.send(t, 0)
		if got := p.next(t, true); slices.Contains(got, 2) {
			return
		}
	}
	t.Error("an idle descriptor with a message was not found in 100 turns")
}

// Descriptors that fall silent are idle again, and found again.
func TestSet_BusyAndIdleAgain(t *testing.T) {
	p := newPipes(t, 3)
	for range 2 {
		for _, i := range []int{1, 0, 1, 2} {
			p.send(t, i)
			if got := p.next(t, true); !slices.Equal(got, []int{i}) {
				t.Errorf("ready: %v, want %d", got, i)
			}
		}
		time.Sleep(150 * time.Millisecond) // until the next sleep counts them as idle
	}
}

// After Remove an item is not returned again, while another goroutine waits or not.
func TestSet_Remove(t *testing.T) {
	p := newPipes(t, 3)
	for i := range 3 {
		p.send(t, i)
	}
	for seen := map[int]bool{}; len(seen) < 3; {
		for _, i := range p.next(t, false) {
			seen[i] = true
		}
	}
	p.Drop(p.ends[0])
	removed := make(chan bool)
	go func() {
		labtest.WaitParked(t, "descriptor_test.(*pipes).next", 1)
		p.Remove(p.ends[1]) // busy
		p.Remove(p.ends[0]) // not there
		p.send(t, 0)
		p.send(t, 1)
		p.send(t, 2)
		close(removed)
	}()
	if got := p.next(t, false); !slices.Equal(got, []int{2}) {
		t.Errorf("ready: %v, want 2", got)
	}
	<-removed
	if !p.read(0) || !p.read(1) {
		t.Error("a removed descriptor was read")
	}
	if err := p.Add(p.ends[1], 1); err != nil {
		t.Fatal(err)
	}
	p.send(t, 1)
	if got := p.next(t, false); !slices.Equal(got, []int{1}) {
		t.Errorf("ready: %v, want 1, which was added again", got)
	}
}

// A peer that is gone makes a descriptor ready: the read tells.
func TestSet_Broken(t *testing.T) {
	set, err := descriptor.NewSet[string]()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f, err := descriptor.Dup(r)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(set.Add(f, "pipe"), r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if ready, ok := set.Wait(false); !ok || !slices.Equal(ready, []string{"pipe"}) {
		t.Errorf("ready: %v, %v", ready, ok)
	}
}

func TestSet_Close(t *testing.T) {
	p := newPipes(t, 2)
	ended := make(chan bool)
	go func() {
		_, ok := p.Wait(false)
		ended <- ok
	}()
	labtest.WaitParked(t, "descriptor.(*Set[...]).Wait", 1)
	for range 2 {
		p.Close()
	}
	if labtest.Within(t, "the end of Wait", ended) {
		t.Error("Wait = true after Close")
	}
	if _, ok := p.Wait(false); ok {
		t.Error("the next Wait = true after Close")
	}
	p.Remove(p.ends[0])
	if err := p.Add(p.ends[0], 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Add after Close: %v, want %v", err, os.ErrClosed)
	}
}

func TestSet_Allocs(t *testing.T) {
	for _, n := range []int{1, 10} {
		p := newPipes(t, n)
		found := 0
		one, buf := []byte{1}, make([]byte, 1)
		round := func() {
			for _, peer := range p.peers {
				_, _ = unix.Write(peer, one)
			}
			for got := 0; got < n; {
				ready, _ := p.Wait(got == 0)
				for _, i := range ready {
					fd, _ := p.ends[i].Acquire()
					if _, err := unix.Read(fd, buf); err == nil {
						got++
						found++
					}
					p.ends[i].Release()
				}
			}
		}
		round()
		if allocs := testing.AllocsPerRun(100, round); allocs != 0 {
			t.Errorf("%d descriptors: %v allocations a round, want 0", n, allocs)
		}
		if found < 100*n {
			t.Errorf("%d descriptors: found %d messages", n, found)
		}
	}
}

// A Poke is answered by the goroutine that waits, whether it sleeps or works.
func TestSet_Poke(t *testing.T) {
	p := newPipes(t, 2)
	p.Poke()
	if p.Answered() {
		t.Error("a Poke is answered although nobody waits")
	}
	p.send(t, 0)
	p.next(t, false)
	if !p.Answered() {
		t.Error("Wait does not answer a Poke")
	}
	got := make(chan []int)
	go func() { got <- p.next(t, false) }()
	for range 3 {
		labtest.WaitParked(t, "descriptor_test.(*pipes).next", 1)
		p.Poke()
		labtest.WaitFor(t, "an answer", p.Answered)
	}
	p.send(t, 1)
	if ready := labtest.Within(t, "a descriptor to be ready", got); !slices.Equal(ready, []int{1}) {
		t.Errorf("after Pokes %v are ready", ready)
	}
	p.Close()
	p.Poke()
	if !p.Answered() {
		t.Error("a closed Set is waited for")
	}
}
