package netlab

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h) of the system call's number and, on a little-endian machine, of the
// lower half of its first argument.
const (
	seccompNumber   = 0
	seccompFirstArg = 16
)

// hideXState makes ptrace(PTRACE_GETREGSET) fail with EIO on the calling thread and for all that it starts from then on,
// which cannot be undone. Programs take that for a kernel without XSAVE.
func hideXState() error {
	code, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: seccompNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_PTRACE, SkipTrue: 3},
		bpf.LoadAbsolute{Off: seccompFirstArg, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PTRACE_GETREGSET, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EIO)},
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
