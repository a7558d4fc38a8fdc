package bench

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"goipip/internal/netlab"
)

// clockTick is the unit of times in /proc, USER_HZ, which is 100 on every Linux
// that Go runs on.
const clockTick = 10 * time.Millisecond

// usage is what has been used so far.
type usage struct {
	// processes is the CPU time of a peer's processes. It has what the kernel did in
	// their system calls, with the veth and the far end's protocol work that a
	// sending call runs through; but not what it did on their behalf in ksoftirqd
	// or in the time of others.
	processes time.Duration
	// machine is the time that all CPUs were busy: with the peer, but also with the
	// load and whatever else the machine does. Nothing hides from it.
	machine time.Duration
	// memory is the most that one of the processes has had resident, in bytes.
	memory int
}

func (u usage) since(before usage) usage {
	u.processes -= before.processes
	u.machine -= before.machine
	return u
}

func usageOf(tb testing.TB, processes []*netlab.Process) (u usage) {
	tb.Helper()
	var err error
	if u.machine, err = machineTime(); err != nil {
		tb.Fatal(err)
	}
	for _, p := range processes {
		t, err := cpuTime(p.Pid())
		if err != nil {
			tb.Fatal(err)
		}
		u.processes += t
		m, err := peakMemory(p.Pid())
		if err != nil {
			tb.Fatal(err)
		}
		u.memory = max(u.memory, m)
	}
	return u
}

// machineTime returns how long CPUs have been busy, proc_stat(5).
func machineTime() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of the machine: %w", err)
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	// cpu user nice system idle iowait irq softirq steal guest guest_nice
	busy, err := ticks(bytes.Fields(line), 1, 2, 3, 6, 7)
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of the machine: %w", err)
	}
	return busy, nil
}

// cpuTime returns user and system time of one process, proc_pid_stat(5).
func cpuTime(pid int) (time.Duration, error) {
	const state, utime, stime = 3, 14, 15 // numbers of fields
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	// The name before the state may contain anything but ends with the last ")".
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	t, err := ticks(fields, utime-state, stime-state)
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return t, nil
}

// ticks returns the sum of the fields with these indexes, in clock ticks.
func ticks(fields [][]byte, indexes ...int) (sum time.Duration, err error) {
	for _, i := range indexes {
		if i >= len(fields) {
			return 0, fmt.Errorf("%q has no field %d", fields, i)
		}
		n, err := strconv.ParseUint(string(fields[i]), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}

// peakMemory returns VmHWM of one process in bytes, proc_pid_status(5).
func peakMemory(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	var kB int
	_, line, _ := bytes.Cut(status, []byte("\nVmHWM:"))
	if _, err := fmt.Sscanf(string(line), "%d kB", &kB); err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	return kB << 10, nil
}

// BenchmarkQuiet tells how busy the machine is with other things, while nothing is
// measured.
func BenchmarkQuiet(b *testing.B) {
	before := usageOf(b, nil)
	for b.Loop() {
		time.Sleep(100 * time.Millisecond)
	}
	used := usageOf(b, nil).since(before)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(100*used.machine.Seconds()/b.Elapsed().Seconds()/float64(runtime.NumCPU()), "busy-%")
}

func TestUsage(t *testing.T) {
	deadline := time.Now().Add(10 * time.Second)
	now := func() (u usage) {
		var errs [3]error
		u.processes, errs[0] = cpuTime(os.Getpid())
		u.machine, errs[1] = machineTime()
		u.memory, errs[2] = peakMemory(os.Getpid())
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
		return u
	}
	first := now()
	used := now().since(first)
	for ; used.processes < 5*clockTick || used.machine < 5*clockTick; used = now().since(first) {
		if time.Now().After(deadline) {
			t.Fatalf("a busy process has used %+v since %+v", used, first)
		}
	}
	if last := now(); last.processes > time.Minute || last.processes > last.machine {
		t.Errorf("a young process has used %+v", last)
	}
	if used.memory < 1<<20 || used.memory > 1<<32 {
		t.Errorf("this process has had %d bytes", used.memory)
	}
}
