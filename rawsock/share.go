package rawsock

import (
	"goipip/internal/packet"

	"golang.org/x/net/bpf"
)

// shareFilter keeps one of n shares of the packets. It adds up the inner addresses and, where there are any, both ports, folds
// the upper half of the sum onto the lower one, multiplies by 2³²/φ, and scales
// the result to n. Without folding, source ports would hardly count, and of the
// result the upper bits are the good ones: connect(2) takes every other port, so
// that a modulo left half of the receivers without work. A packet too short for an
// inner header goes to share 0, where it is counted as malformed.
func shareFilter(share, n uint32) []bpf.Instruction {
	const ports, source, destination = 0, 1, 2 // scratch cells, zero at first
	short := uint32(drop)
	if share == 0 {
		short = keep
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
		bpf.RetConstant{Val: keep},
	}
}
