package rawsock

import (
	"errors"
	"fmt"
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

// credit bounds what waits on a receiver's sockets in place of their buffers, by an eBPF
// program as their filter. The kernel answers a packet with ICMP 3/2 when no socket took
// it, and a socket whose buffer is full does not count as a taker, while one whose filter
// drops the packet does (raw_v4_input in net/ipv4/raw.c). A guard would serve as well, for
// a copy of each packet's metadata, which took a TCP stream 5 to 7 % of its throughput.
//
// The program counts what it drops for want of room, for each pair, and nothing else: of
// several receivers each counts its own share.
type credit struct {
	counts  *creditCounts
	memory  []byte    // that counts lies in, shared with the kernel
	pairs   *ebpf.Map // from pairKey to the count of a pair's drops
	program *ebpf.Program
}

// maxPairs is the most pairs of a receiver. The map takes 16 bytes of kernel memory for each
// that there could be, and about 100 more for each that there is.
const maxPairs = 1 << 16

// pairKey is a pair as the program loads it from an outer header. A destination of 0 is for
// any: packets of which no pair has both addresses (R2).
type pairKey struct{ source, destination uint32 }

func (p Pair) key() pairKey { return pairKey{number(p.Remote), number(p.Local)} }

// creditCounts are shared with the program, at the offsets below. What the kernel writes
// and what this process writes lie in cache lines of their own.
type creditCounts struct {
	arrived  uint64 // weight of the packets that the filter let pass
	_        [7]uint64
	consumed uint64 // weight of the packets that were received
	_        [7]uint64
	single   uint64 // the pairKey of the only pair, or 0, which no packet has
}

const (
	arrivedOffset  = int16(unsafe.Offsetof(creditCounts{}.arrived))
	consumedOffset = int16(unsafe.Offsetof(creditCounts{}.consumed))
	singleOffset   = int16(unsafe.Offsetof(creditCounts{}.single))
)

// noCredit is for tests: it makes newCredit fail, as where the kernel refuses.
var noCredit error

// newCredit makes a credit without pairs, for the packets of one share of shares. It takes
// CAP_BPF and CAP_NET_ADMIN in the initial user namespace, and Linux 5.5.
func newCredit(share, shares int) (_ *credit, err error) {
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
	c := &credit{}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	c.pairs, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "goipip_pairs", Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(pairKey{})), ValueSize: 8,
		MaxEntries: maxPairs, Flags: unix.BPF_F_NO_PREALLOC,
	})
	if err != nil {
		return nil, fmt.Errorf("make map of pairs: %w", err)
	}
	c.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "goipip_credit", Type: ebpf.SocketFilter, License: "MIT",
		Instructions: creditProgram(counts.FD(), c.pairs.FD(), share, shares),
	})
	if err != nil {
		return nil, fmt.Errorf("load filter: %w", err)
	}
	c.memory, err = unix.Mmap(counts.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	c.counts = (*creditCounts)(unsafe.Pointer(unsafe.SliceData(c.memory)))
	return c, nil
}

// attach makes the credit the limit of a socket.
func (c *credit) attach(fd int) error {
	if err := setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, "SO_RCVBUFFORCE", creditBuffer); err != nil {
		return err
	}
	if err := setOption(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, "SO_ATTACH_BPF", c.program.FD()); err != nil {
		// Without the filter nothing else would bound what waits.
		return errors.Join(err, setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer))
	}
	return nil
}

// add lets the packets of a pair pass. Its count of drops goes on from dropped.
func (c *credit) add(p Pair, dropped uint64) error {
	if err := c.pairs.Put(p.key(), dropped); err != nil {
		return fmt.Errorf("add pair to filter: %w", err)
	}
	return nil
}

// setSingle spares the packets of p, the only pair, the lookup in the map, which took 1 % of
// the time of a packet. With the zero Pair there is no such pair.
func (c *credit) setSingle(p Pair) {
	var word uint64
	if p != (Pair{}) {
		*(*pairKey)(unsafe.Pointer(&word)) = p.key()
	}
	atomic.StoreUint64(&c.counts.single, word)
}

// remove ends what add began.
func (c *credit) remove(p Pair) error {
	if err := c.pairs.Delete(p.key()); err != nil {
		return fmt.Errorf("remove pair from filter: %w", err)
	}
	return nil
}

// drops returns how many packets of a pair found no room.
func (c *credit) drops(p Pair) (n uint64, err error) {
	err = c.pairs.Lookup(p.key(), &n)
	return n, err
}

// consume gives back the credit of packets that were received, of n bytes in all.
func (c *credit) consume(packets, n int) {
	atomic.AddUint64(&c.counts.consumed, uint64(n+packets*packetWeight))
}

// close comes after the last use of c. Sockets keep the program and its maps.
func (c *credit) close() (err error) {
	if c.memory != nil {
		err = os.NewSyscallError("munmap", unix.Munmap(c.memory))
	}
	return errors.Join(err, c.pairs.Close(), c.program.Close())
}

// creditProgram sees a packet from its outer header on. What is of no known pair, or of
// another share, it drops uncounted.
func creditProgram(counts, pairs, share, shares int) asm.Instructions {
	const key, anyKey = -8, -16 // on the stack
	lookUp := func(missing string) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, pairs),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, missing),
		}
	}
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // length
		asm.LoadAbs(offSource, asm.Word),
		asm.StoreMem(asm.RFP, key, asm.R0, asm.Word),
		asm.LoadAbs(offDestination, asm.Word),
		asm.StoreMem(asm.RFP, key+4, asm.R0, asm.Word),
		asm.LoadMapValue(asm.R9, counts, 0),
		asm.LoadMem(asm.R1, asm.R9, singleOffset, asm.DWord),
		asm.LoadMem(asm.R2, asm.RFP, key, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, "known"),

		// The only pair may be one for any destination.
		asm.JEq.Imm(asm.R1, 0, "exact"),
		asm.LoadMem(asm.R2, asm.RFP, key, asm.Word),
		asm.StoreMem(asm.RFP, anyKey, asm.R2, asm.Word),
		asm.StoreImm(asm.RFP, anyKey+4, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.RFP, anyKey, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "exact"),
		asm.StoreImm(asm.RFP, key+4, 0, asm.Word),
		asm.Ja.Label("known"),
	}
	exact := lookUp("any")
	exact[0] = exact[0].WithSymbol("exact")
	program = append(program, exact...)
	program = append(program,
		asm.Ja.Label("known"),
		asm.StoreImm(asm.RFP, key+4, 0, asm.Word).WithSymbol("any"),
	)
	program = append(program, lookUp("other")...)
	if shares > 1 {
		rest := shareProgram(share, shares)
		rest[0] = rest[0].WithSymbol("known")
		program = append(program, rest...)
		program = append(program, asm.LoadMapValue(asm.R9, counts, 0).WithSymbol("mine"))
	} else {
		program = append(program, asm.LoadMapValue(asm.R9, counts, 0).WithSymbol("known"))
	}
	program = append(program,
		asm.LoadMem(asm.R1, asm.R9, arrivedOffset, asm.DWord),
		asm.LoadMem(asm.R2, asm.R9, consumedOffset, asm.DWord),
		asm.Sub.Reg(asm.R1, asm.R2),
		asm.JSGT.Imm(asm.R1, creditLimit, "full"),
		asm.Add.Imm(asm.R7, packetWeight),
		asm.AddAtomic.Mem(asm.R9, asm.R7, asm.DWord, arrivedOffset),
		asm.Mov.Imm(asm.R0, keep),
		asm.Return(),
	)
	full := lookUp("other")
	full[0] = full[0].WithSymbol("full")
	program = append(program, full...)
	return append(program,
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
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
