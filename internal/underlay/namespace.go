package underlay

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// namespace is a network namespace, for files that only a thread in it can read: those
// below /proc/thread-self/net (proc(5)).
type namespace struct{ handle netns.NsHandle }

// currentNamespace returns the namespace of the calling thread. The caller closes it.
func currentNamespace() (namespace, error) {
	handle, err := netns.Get()
	if err != nil {
		return namespace{netns.None()}, fmt.Errorf("find the network namespace: %w", err)
	}
	return namespace{handle}, nil
}

func (n *namespace) close() {
	if n.handle.IsOpen() {
		n.handle.Close()
	}
}

// do calls f on a thread in the namespace. Usually all threads of the process are in it;
// entering another takes CAP_SYS_ADMIN.
func (n namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		here, err := netns.Get()
		if err != nil {
			done <- err
			return // which ends the thread
		}
		defer here.Close()
		if here.Equal(n.handle) {
			defer runtime.UnlockOSThread()
		} else if err := netns.Set(n.handle); err != nil { // the thread stays locked, and ends after f
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
