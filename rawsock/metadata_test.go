package rawsock_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// metadata is what a packet has besides its bytes as it leaves a host.
type metadata struct{ Mark, Priority uint32 }

// watch is a program that looks at all ipip packets which leave by a device.
type watch struct{ count, seen *ebpf.Map }

const mostWatched = 1 << 10

// watchMetadata attaches one to a device.
func watchMetadata(t *testing.T, h *netlab.Host, device string) watch {
	t.Helper()
	labtest.Need(t, "bpf")
	newMap := func(valueSize, entries uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: valueSize, MaxEntries: entries})
		must(t, err)
		t.Cleanup(func() { m.Close() })
		return m
	}
	w := watch{count: newMap(4, 1), seen: newMap(8, mostWatched)}
	const (
		skbMark, skbPriority = 8, 32  // struct __sk_buff in linux/bpf.h
		protocol             = 14 + 9 // behind the Ethernet header
		pass                 = 0      // TC_ACT_OK
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadAbs(12, asm.Half),
			asm.JNE.Imm(asm.R0, unix.ETH_P_IP, "out"),
			asm.LoadAbs(protocol, asm.Byte),
			asm.JNE.Imm(asm.R0, packet.ProtoIPIP, "out"),
			asm.LoadMapValue(asm.R7, w.count.FD(), 0),
			asm.LoadMem(asm.R8, asm.R7, 0, asm.Word), // not atomic: there is one sender
			asm.StoreMem(asm.RFP, -4, asm.R8, asm.Word),
			asm.Add.Imm(asm.R8, 1),
			asm.StoreMem(asm.R7, 0, asm.R8, asm.Word),
			asm.LoadMapPtr(asm.R1, w.seen.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R1, asm.R6, skbMark, asm.Word),
			asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
			asm.LoadMem(asm.R1, asm.R6, skbPriority, asm.Word),
			asm.StoreMem(asm.R0, 4, asm.R1, asm.Word),
			asm.Mov.Imm(asm.R0, pass).WithSymbol("out"),
			asm.Return(),
		},
	})
	must(t, err)
	defer program.Close()
	index := deviceIndex(t, h, device)
	must(t,
		h.Netlink().QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}}),
		h.Netlink().FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
			},
			Fd: program.FD(), Name: "watch", DirectAction: true,
		}),
	)
	return w
}

// all returns what it has seen, in order.
func (w watch) all(t *testing.T) []metadata {
	t.Helper()
	var n uint32
	must(t, w.count.Lookup(uint32(0), &n))
	seen := make([]metadata, n)
	for i := range seen {
		must(t, w.seen.Lookup(uint32(i), &seen[i]))
	}
	return seen
}
