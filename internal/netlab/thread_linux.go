package netlab

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs fn on an operating system thread of its own, which the runtime throws away afterwards, because fn
// returns with its goroutine locked to it. So fn may change the thread's namespace. New threads of the runtime are never
// cloned from a locked one. It is never the main thread: that one cannot end, and /proc/self would show its
// namespace as the whole process's.
func onThread(fn func()) {
	locked := make(chan struct{})
	run := func() {
		runtime.LockOSThread()
		close(locked)
		fn()
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			run()
			return
		}
		// The main thread is held until fn has another one.
		go run()
		<-locked
		runtime.UnlockOSThread()
	}()
}
