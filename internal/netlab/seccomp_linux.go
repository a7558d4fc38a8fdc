package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h) of the system call's number and, on a little-endian machine, of the
// lower half of its first argument. Each argument has 8 bytes.
const (
	seccompNumber   = 0
	seccompFirstArg = 16
)

// RefusedCall is a system call that fails, as in another kernel.
type RefusedCall struct {
	Number int
	Arg    uint32       // which of its arguments decides, from 0
	Unless bpf.JumpTest // in comparison with Value, it does not fail
	Value  uint32
	Errno  unix.Errno
}

// hidesXState makes ptrace(PTRACE_GETREGSET) fail. Programs take that for a kernel without XSAVE.
var hidesXState = RefusedCall{unix.SYS_PTRACE, 0, bpf.JumpNotEqual, unix.PTRACE_GETREGSET, unix.EIO}

// refuse makes a system call fail on the calling thread and for all that it starts from then on, which cannot be undone.
func refuse(r RefusedCall) error {
	code, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: seccompNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(r.Number), SkipTrue: 3},
		bpf.LoadAbsolute{Off: seccompFirstArg + 8*r.Arg, Size: 4},
		bpf.JumpIf{Cond: r.Unless, Val: r.Value, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(r.Errno)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return fmt.Errorf("assemble seccomp filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filter[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return os.NewSyscallError("prctl PR_SET_SECCOMP", errno)
	}
	return nil
}

// startRefused starts cmd in the namespace, with a system call that fails. A thread of its own does it, which is the parent
// for Pdeathsig and keeps that off everything else.
func (h *Host) startRefused(cmd *exec.Cmd, r RefusedCall) (*Process, error) {
	p := &Process{host: h, cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	onThread(func() {
		err := netns.Set(h.ns)
		if err == nil {
			err = refuse(r)
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			<-p.done()
		}
	})
	if err := <-started; err != nil {
		return nil, fmt.Errorf("host %s: start %s: %w", h.Name, cmd.Path, err)
	}
	return p, nil
}

// StartRefusing starts cmd as Start does, with a system call that fails.
func (h *Host) StartRefusing(cmd *exec.Cmd, r RefusedCall) (*Process, error) {
	prepare(cmd)
	p, err := h.startRefused(cmd, r)
	if err != nil {
		return nil, err
	}
	h.lab.onClose(p.Stop)
	return p, nil
}
