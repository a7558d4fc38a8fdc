package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"goipip/internal/netlab"
)

// clockTick is the unit of times in /proc, USER_HZ, which is 100 on every Linux
// that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuTime returns the CPU time that processes have used so far. It has what the
// kernel did in their system calls, with the veth and the far end's protocol
// work that a sending call runs through; but not what it did on their behalf in
// ksoftirqd or in the time of others.
func cpuTime(tb testing.TB, processes []*netlab.Process) (sum time.Duration) {
	tb.Helper()
	for _, p := range processes {
		t, err := cpuTimeOf(p.Pid())
		if err != nil {
			tb.Fatal(err)
		}
		sum += t
	}
	return sum
}

// cpuTimeOf returns user and system time of one process, proc_pid_stat(5).
func cpuTimeOf(pid int) (time.Duration, error) {
	const state, utime, stime = 3, 14, 15 // numbers of fields
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	// The name before the state may contain anything but ends with the last ")".
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	var ticks uint64
	for _, n := range []int{utime, stime} {
		if n-state >= len(fields) {
			return 0, fmt.Errorf("read the CPU time of process %d: %q has no field %d", pid, stat, n)
		}
		t, err := strconv.ParseUint(string(fields[n-state]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
		}
		ticks += t
	}
	return time.Duration(ticks) * clockTick, nil
}

func TestCPUTime(t *testing.T) {
	deadline := time.Now().Add(10 * time.Second)
	now := func() time.Duration {
		cpu, err := cpuTimeOf(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		return cpu
	}
	for first := now(); now() < first+5*clockTick; {
		if time.Now().After(deadline) {
			t.Fatalf("a busy process has used %v of CPU time, and %v before that", now(), first)
		}
	}
	if cpu := now(); cpu > time.Minute {
		t.Errorf("a young process has used %v of CPU time", cpu)
	}
}
