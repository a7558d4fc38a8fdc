//go:build linux

package main

import (
	"fmt"
	"math"
	"os"
	"strconv"

	"goipip/internal/daemon/config"
	"goipip/internal/resolver"
	"goipip/internal/tunnel"

	"golang.org/x/sys/unix"
)

// Descriptors that must be free, about half as many again as are used: by the process
// without workers and tunnels; by a worker, with its sockets; by a tunnel, and by each of its
// queues; by the fast path, and by a tunnel that uses it; and by the demo. Beside them, each
// name may need one to be looked up.
const (
	processDescriptors = 32
	workerDescriptors  = 18
	tunnelDescriptors  = 2
	queueDescriptors   = 2
	fastDescriptors    = 16
	fastLinkDescriptor = 1
	demoDescriptors    = 64
)

// needDescriptors checks that this process may open enough descriptors for what is
// named, with so many queues in it. It goes before everything that opens one: the
// runtime, for one, crashes where it cannot have its poller.
func needDescriptors(what string, n int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil // no limit is known
	}
	// The limit is on numbers, some of which the caller of this program left open.
	// What is open and close-on-exec did not come from there: it is the runtime's,
	// and in n.
	enough := 0
	for free := 0; free < n; enough++ {
		flags, err := unix.FcntlInt(uintptr(enough), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			free++
		}
	}
	if limit.Cur >= uint64(enough) {
		return nil
	}
	return fmt.Errorf("too few file descriptors for %s: the limit is %d: raise it to at least %d (ulimit -n %d)",
		what, limit.Cur, enough, enough)
}

// needTunnelDescriptors does so for a tunnel.
func needTunnelDescriptors(cfg tunnel.Config, workers int) error {
	what := "a tunnel with 1 queue"
	if cfg.Queues != 1 {
		what = fmt.Sprintf("a tunnel with %d queues", cfg.Queues)
	}
	return needDescriptors(what, tunnelsNeed(workers, cfg))
}

// needDaemonDescriptors does so for several tunnels.
func needDaemonDescriptors(tunnels []config.Tunnel, workers int) error {
	var all []tunnel.Config
	for _, t := range tunnels {
		all = append(all, t.Config)
	}
	return needDescriptors(fmt.Sprintf("%d tunnels", len(tunnels)), tunnelsNeed(workers, all...))
}

// tunnelsNeed returns how many descriptors a process with these tunnels needs.
func tunnelsNeed(workers int, tunnels ...tunnel.Config) int {
	n, fast, names := processDescriptors+workers*workerDescriptors, 0, 0
	for _, t := range tunnels {
		n += tunnelDescriptors + t.Queues*queueDescriptors
		if t.Fast != tunnel.FastOff {
			fast++
		}
		if t.RemoteName != "" {
			names++
		}
	}
	if fast > 0 {
		n += fastDescriptors + fast*fastLinkDescriptor
	}
	return n + min(names, resolver.Concurrent)
}

// needDemoDescriptors does so for the demo, whose tunnels need theirs.
func needDemoDescriptors() error {
	return needDescriptors("the demo", max(demoDescriptors, tunnelsNeed(tunnel.DefaultQueues(), tunnel.Config{Queues: tunnel.DefaultQueues()})))
}

// closeOnExec keeps all descriptors from first on from programs that this process
// starts. Those that its caller left open go no further then, a lock say.
func closeOnExec(first int) error {
	// CLOSE_RANGE_CLOEXEC is Linux 5.11, and a container may refuse the whole call.
	if unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd) // the directory's own is closed by now
		}
	}
	return nil
}
