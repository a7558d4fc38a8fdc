package rawsock

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"unsafe"

	"goipip/internal/packet"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

const (
	// creditLimit is what may wait on a receiver with a credit, in bytes of packets and
	// of their weight.
	creditLimit = 16 << 20
	// packetWeight is what a packet takes besides its bytes: the kernel's metadata, and
	// the rest of the buffer that a driver received it in.
	packetWeight = 1 << 10
	// creditBuffer is the receive buffer of a socket with a credit, in bytes, before the
	// kernel doubles it: more than creditLimit ever takes.
	creditBuffer = 1 << 29
)

// credit bounds what waits on a receiving socket in place of its buffer, by an eBPF
// program as its filter. The kernel answers a packet with ICMP 3/2 when no socket took
// it, and a socket whose buffer is full does not count as a taker, while one whose filter
// drops the packet does (raw_v4_input in net/ipv4/raw.c). A guard would serve as well, for
// a copy of each packet's metadata, which took a TCP stream 5 to 7 % of its throughput.
//
// The program counts what it drops for want of room, and nothing else: of several
// receivers each counts its own share.
type credit struct {
	counts *creditCounts
	memory []byte // that counts lies in, shared with the kernel
}

// creditCounts are shared with the program, at the offsets below. What the kernel writes
// and what this process writes lie in cache lines of their own.
type creditCounts struct {
	arrived  uint64 // weight of the packets that the filter let pass
	dropped  uint64 // packets for which there was no room
	_        [6]uint64
	consumed uint64 // weight of the packets that were received
}

const (
	arrivedOffset  = int16(unsafe.Offsetof(creditCounts{}.arrived))
	droppedOffset  = int16(unsafe.Offsetof(creditCounts{}.dropped))
	consumedOffset = int16(unsafe.Offsetof(creditCounts{}.consumed))
)

// noCredit is for tests: it makes newCredit fail, as where the kernel refuses.
var noCredit error

// newCredit attaches a credit to a socket. It takes CAP_BPF and CAP_NET_ADMIN in the
// initial user namespace, and Linux 5.5.
func newCredit(fd int, cfg Config, share, shares int) (_ *credit, err error) {
	if noCredit != nil {
		return nil, noCredit
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "goipip_credit", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(creditCounts{})),
		MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return nil, fmt.Errorf("make map: %w", err)
	}
	defer counts.Close() // the program and the memory hold it
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "goipip_credit", Type: ebpf.SocketFilter, License: "MIT",
		Instructions: creditProgram(counts.FD(), cfg, share, shares),
	})
	if err != nil {
		return nil, fmt.Errorf("load filter: %w", err)
	}
	defer program.Close() // the socket holds it
	memory, err := unix.Mmap(counts.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Munmap(memory)
		}
	}()
	if err := setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, "SO_RCVBUFFORCE", creditBuffer); err != nil {
		return nil, err
	}
	if err := setOption(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, "SO_ATTACH_BPF", program.FD()); err != nil {
		// Without the filter nothing else would bound what waits.
		return nil, errors.Join(err, setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer))
	}
	return &credit{(*creditCounts)(unsafe.Pointer(unsafe.SliceData(memory))), memory}, nil
}

// consume gives back the credit of packets that were received, of n bytes in all.
func (c *credit) consume(packets, n int) {
	atomic.AddUint64(&c.counts.consumed, uint64(n+packets*packetWeight))
}

// drops returns how many packets found no room.
func (c *credit) drops() uint64 { return atomic.LoadUint64(&c.counts.dropped) }

// close is for when nobody uses c any more.
func (c *credit) close() error { return os.NewSyscallError("munmap", unix.Munmap(c.memory)) }

// creditProgram sees a packet from its outer header on. What is not from cfg.Remote to
// cfg.Local, or of another share, it drops uncounted.
func creditProgram(counts int, cfg Config, share, shares int) asm.Instructions {
	number := func(a netip.Addr) int32 { b := a.As4(); return int32(bigEndian(b)) }
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // length
		asm.LoadAbs(offSource, asm.Word),
		asm.JNE.Imm32(asm.R0, number(cfg.Remote), "other"),
		asm.LoadAbs(offDestination, asm.Word),
		asm.JNE.Imm32(asm.R0, number(cfg.Local), "other"),
	}
	if shares > 1 {
		program = append(program, shareProgram(share, shares)...)
	}
	return append(program,
		asm.LoadMapValue(asm.R9, counts, 0).WithSymbol("mine"),
		asm.LoadMem(asm.R1, asm.R9, arrivedOffset, asm.DWord),
		asm.LoadMem(asm.R2, asm.R9, consumedOffset, asm.DWord),
		asm.Sub.Reg(asm.R1, asm.R2),
		asm.JSGT.Imm(asm.R1, creditLimit, "full"),
		asm.Add.Imm(asm.R7, packetWeight),
		asm.AddAtomic.Mem(asm.R9, asm.R7, asm.DWord, arrivedOffset),
		asm.Mov.Imm(asm.R0, keep),
		asm.Return(),
		asm.Mov.Imm(asm.R1, 1).WithSymbol("full"),
		asm.AddAtomic.Mem(asm.R9, asm.R1, asm.DWord, droppedOffset),
		asm.Mov.Imm(asm.R0, drop).WithSymbol("other"),
		asm.Return(),
	)
}

// shareProgram does what shareFilter does, and goes to "mine" or "other".
func shareProgram(share, shares int) asm.Instructions {
	short := "other"
	if share == 0 {
		short = "mine"
	}
	const x, sum = asm.R8, asm.R9
	load := func(offset int32, size asm.Size) asm.Instruction { return asm.LoadInd(asm.R0, x, offset, size) }
	return asm.Instructions{
		asm.LoadAbs(0, asm.Byte),
		asm.And.Imm(asm.R0, 0x0f),
		asm.LSh.Imm(asm.R0, 2),
		asm.Mov.Reg(x, asm.R0), // where the inner packet begins
		asm.Mov.Reg(asm.R1, x),
		asm.Add.Imm(asm.R1, packet.IPv4HdrLen),
		asm.JLT.Reg(asm.R7, asm.R1, short),

		load(offSource, asm.Word),
		asm.Mov.Reg32(sum, asm.R0),
		load(offDestination, asm.Word),
		asm.Add.Reg32(sum, asm.R0),

		load(offFragment, asm.Half),
		asm.And.Imm(asm.R0, fragmentMask),
		asm.JNE.Imm(asm.R0, 0, "fold"),
		load(offProtocol, asm.Byte),
		asm.JEq.Imm(asm.R0, packet.ProtoTCP, "ports"),
		asm.JNE.Imm(asm.R0, packet.ProtoUDP, "fold"),
		load(0, asm.Byte).WithSymbol("ports"),
		asm.And.Imm(asm.R0, 0x0f),
		asm.LSh.Imm(asm.R0, 2),
		asm.Add.Reg(x, asm.R0), // where the transport header begins
		asm.Mov.Reg(asm.R1, x),
		asm.Add.Imm(asm.R1, 4),
		asm.JLT.Reg(asm.R7, asm.R1, "fold"),
		load(0, asm.Word),
		asm.Add.Reg32(sum, asm.R0),

		asm.Mov.Reg32(asm.R1, sum).WithSymbol("fold"),
		asm.RSh.Imm32(asm.R1, 16),
		asm.Xor.Reg32(sum, asm.R1),
		asm.Mul.Imm32(sum, int32(-0x61c8864f)), // 0x9e3779b1
		asm.RSh.Imm32(sum, 16),
		asm.Mul.Imm32(sum, int32(shares)),
		asm.RSh.Imm32(sum, 16),
		asm.JNE.Imm32(sum, int32(share), "other"),
	}
}
