package rawsock

import (
	"fmt"
	"net"
	"os"

	"goipip/internal/packet"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// SetShare leaves to this receiver the share'th of n parts of the traffic, so
// that n receivers of one tunnel get each packet once. Packets of one inner flow
// (addresses and ports) stay together; fragments go by their addresses alone.
func (r *Receiver) SetShare(share, n int) error {
	program, err := bpf.Assemble(shareFilter(uint32(share), uint32(n)))
	if err == nil {
		err = r.fd.Control(func(fd int) error { return setBPF(fd, program) })
	}
	if err != nil {
		return fmt.Errorf("set filter of receiving socket: %w", err)
	}
	return nil
}

// setBPF lends the socket to x/net/ipv4.
func setBPF(fd int, program []bpf.RawInstruction) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	file := os.NewFile(uintptr(dup), "receiving socket")
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return err
	}
	defer conn.Close()
	return ipv4.NewPacketConn(conn).SetBPF(program)
}

// Offsets in an IPv4 header for the filter, in bytes.
const (
	offFragment    = 6
	offProtocol    = 9
	offSource      = 12
	offDestination = 16
	fragmentMask   = 0x3fff // MF and the fragment offset
)

// shareFilter is a classic BPF program that sees a packet from its outer header
// on. It adds up the inner addresses and, where there are any, both ports, folds
// the upper half of the sum onto the lower one, multiplies by 2³²/φ, and scales
// the result to n. Without folding, source ports would hardly count, and of the
// result the upper bits are the good ones: connect(2) takes every other port, so
// that a modulo left half of the receivers without work. A packet too short for an
// inner header goes to share 0, where it is counted as malformed.
func shareFilter(share, n uint32) []bpf.Instruction {
	const ports, source, destination = 0, 1, 2 // scratch cells, zero at first
	const pass, drop = slotSize, 0
	short := uint32(drop)
	if share == 0 {
		short = pass
	}
	return []bpf.Instruction{
		bpf.LoadConstant{Dst: bpf.RegA, Val: 0},
		bpf.StoreScratch{Src: bpf.RegA, N: ports},
		bpf.LoadMemShift{Off: 0}, // X = where the inner packet begins
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: packet.IPv4HdrLen},
		bpf.JumpIfX{Cond: bpf.JumpGreaterOrEqual, SkipTrue: 1},
		bpf.RetConstant{Val: short},

		bpf.LoadIndirect{Off: offSource, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: source},
		bpf.LoadIndirect{Off: offDestination, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: destination},

		bpf.LoadIndirect{Off: offFragment, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: fragmentMask, SkipTrue: 13},
		bpf.LoadIndirect{Off: offProtocol, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: packet.ProtoTCP, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: packet.ProtoUDP, SkipTrue: 10},
		bpf.LoadIndirect{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{}, // X = where the transport header begins
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: 4},
		bpf.JumpIfX{Cond: bpf.JumpLessThan, SkipTrue: 2},
		bpf.LoadIndirect{Off: 0, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: ports},

		bpf.LoadScratch{Dst: bpf.RegA, N: ports},
		bpf.LoadScratch{Dst: bpf.RegX, N: source},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.LoadScratch{Dst: bpf.RegX, N: destination},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: n},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: share, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: pass},
	}
}
