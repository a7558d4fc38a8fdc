package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/packet"
)

// KernelIPIP is one end of an ipip tunnel in a host's own kernel. All addresses are IPv4.
type KernelIPIP struct {
	Dev                     string     // the Ethernet device towards Remote; it carries one such tunnel at most
	Local, Remote           netip.Addr // of the outer header; Local is an address of the host
	InnerLocal, InnerRemote netip.Addr // of what uses the tunnel; AttachIPIP gives InnerLocal to the loopback
}

// AttachIPIP makes h's kernel an end of an ipip tunnel without ipip.ko, by two tc-bpf programs on cfg.Dev: what leaves
// for InnerRemote gets an outer header (DF, TTL 64, TOS 0), and what comes from Remote for Local in protocol 4 loses it.
// Outer options and outer fragments are beyond it. A route takes InnerRemote the way that Remote goes, with the tunnel's
// MTU. All that lasts as long as the device.
//
// TCP superpackets are encapsulated whole, and a veth passes them whole: the far end's raw sockets receive up to
// 64 KiB in one packet, whose inner checksum is the sum of its pseudo-header only.
func (h *Host) AttachIPIP(cfg KernelIPIP) error {
	link, err := h.link(cfg.Dev)
	if err != nil {
		return err
	}
	if err := h.AddAddr("lo", netip.PrefixFrom(cfg.InnerLocal, 32).String()); err != nil {
		return err
	}
	if err := h.routeIPIP(link, cfg); err != nil {
		return fmt.Errorf("host %s: route %s to the tunnel on %s: %w", h.Name, cfg.InnerRemote, cfg.Dev, err)
	}
	if err := h.nl.QdiscAdd(clsact(link)); err != nil {
		return fmt.Errorf("host %s: add clsact to %s: %w", h.Name, cfg.Dev, err)
	}
	if err := h.attachBPF(link, netlink.HANDLE_MIN_EGRESS, "ipip_encap", cfg.encap()); err != nil {
		return err
	}
	return h.attachBPF(link, netlink.HANDLE_MIN_INGRESS, "ipip_decap", cfg.decap())
}

// routeIPIP sends packets for the inner remote to the neighbour that those for the outer one go to.
func (h *Host) routeIPIP(link netlink.Link, cfg KernelIPIP) error {
	routes, err := h.nl.RouteGet(cfg.Remote.AsSlice())
	if err != nil {
		return err
	}
	neighbour := routes[0].Gw
	if neighbour == nil {
		neighbour = cfg.Remote.AsSlice()
	}
	return h.nl.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       netlink.NewIPNet(cfg.InnerRemote.AsSlice()),
		Src:       cfg.InnerLocal.AsSlice(),
		Gw:        neighbour,
		MTU:       link.Attrs().MTU - packet.IPv4HdrLen,
	})
}

// attachBPF loads a program and runs it on each packet at one of the two hooks of link's clsact.
func (h *Host) attachBPF(link netlink.Link, hook uint32, name string, code asm.Instructions) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: code})
	if err != nil {
		return fmt.Errorf("host %s: load %s: %w", h.Name, name, err)
	}
	// The filter holds the program from here on.
	defer prog.Close()

	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index,
			Parent:    hook,
			Priority:  1,
			Protocol:  unix.ETH_P_IP,
		},
		Fd:           prog.FD(),
		Name:         name,
		DirectAction: true,
	}
	if err := h.nl.FilterAdd(filter); err != nil {
		return fmt.Errorf("host %s: attach %s to %s: %w", h.Name, name, link.Attrs().Name, err)
	}
	return nil
}

// clsact is the queueing discipline that tc-bpf programs attach to.
func clsact(link netlink.Link) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
}

// Verdicts of a tc program (linux/pkt_cls.h).
const (
	tcActUnspec = -1 // no opinion: go on as if there were no program
	tcActOK     = 0
	tcActShot   = 2
)

// Offsets: in struct __sk_buff (linux/bpf.h), in the packet, in an IPv4 header, and of a copy of that header on the stack.
const (
	skbLen      = 0
	etherLen    = 14
	ipTotalLen  = 2
	ipProtocol  = 9
	ipChecksum  = 10
	ipSource    = 12
	ipDest      = 16
	stackHeader = -packet.IPv4HdrLen
)

// encap returns the program for what leaves.
func (cfg KernelIPIP) encap() asm.Instructions {
	return slices.Concat(
		loadHeader(),
		skipUnless(ipDest, asm.Word, word(cfg.InnerRemote.AsSlice())),
		adjustRoom(packet.IPv4HdrLen, unix.BPF_F_ADJ_ROOM_ENCAP_L3_IPV4),
		storeHeader(cfg.outer()),
		exits(),
	)
}

// outer returns the outer header, without total length and checksum.
func (cfg KernelIPIP) outer() packet.IPv4 {
	outer := make(packet.IPv4, packet.IPv4HdrLen)
	outer.InitHeader()
	outer.SetDF(true) // so that the ID may stay 0 (RFC 6864)
	outer.SetTTL(64)
	outer.SetProtocol(packet.ProtoIPIP)
	outer.SetSource(cfg.Local.As4())
	outer.SetDestination(cfg.Remote.As4())
	return outer
}

// decap returns the program for what arrives.
func (cfg KernelIPIP) decap() asm.Instructions {
	return slices.Concat(
		loadHeader(),
		skipUnless(ipProtocol, asm.Byte, packet.ProtoIPIP),
		skipUnless(ipSource, asm.Word, word(cfg.Remote.AsSlice())),
		skipUnless(ipDest, asm.Word, word(cfg.Local.AsSlice())),
		adjustRoom(-packet.IPv4HdrLen, unix.BPF_F_ADJ_ROOM_DECAP_L3_IPV4),
		exits(),
	)
}

// loadHeader keeps the packet in R6 and copies its IPv4 header to the stack.
func loadHeader() asm.Instructions {
	return slices.Concat(
		asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)},
		headerArgs(),
		asm.Instructions{
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "skip"),
		},
	)
}

// headerArgs sets the first four arguments of bpf_skb_load_bytes and bpf_skb_store_bytes: the packet, where its IPv4
// header is, where the stack's is, and how long both are.
func headerArgs() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, etherLen),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackHeader),
		asm.Mov.Imm(asm.R4, packet.IPv4HdrLen),
	}
}

// skipUnless lets packets pass untouched whose header has another value in that field.
func skipUnless(field int16, size asm.Size, value int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R0, asm.RFP, stackHeader+field, size),
		asm.JNE.Imm32(asm.R0, value, "skip"),
	}
}

// adjustRoom adds room for a header before the IPv4 header, or takes it away. The size of a superpacket's segments stays
// as it is: TCP knows the tunnel's MTU from the route.
func adjustRoom(size int32, flags int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Imm(asm.R3, unix.BPF_ADJ_ROOM_MAC),
		asm.Mov.Imm(asm.R4, flags|unix.BPF_F_ADJ_ROOM_FIXED_GSO),
		asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
	}
}

// storeHeader writes an outer header to the room for it, with the packet's length and the checksum.
func storeHeader(outer packet.IPv4) asm.Instructions {
	var code asm.Instructions
	for i := 0; i < len(outer); i += 4 {
		code = append(code, asm.StoreImm(asm.RFP, int16(stackHeader+i), int64(word(outer[i:])), asm.Word))
	}
	code = append(code,
		asm.LoadMem(asm.R1, asm.R6, skbLen, asm.Word),
		asm.Sub.Imm(asm.R1, etherLen),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(asm.RFP, stackHeader+ipTotalLen, asm.R1, asm.Half),

		asm.Mov.Imm(asm.R1, 0),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackHeader),
		asm.Mov.Imm(asm.R4, packet.IPv4HdrLen),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnCsumDiff.Call(),
	)
	// Twice, because the first carry may make another.
	for range 2 {
		code = append(code,
			asm.Mov.Reg(asm.R1, asm.R0),
			asm.RSh.Imm(asm.R1, 16),
			asm.And.Imm(asm.R0, 0xffff),
			asm.Add.Reg(asm.R0, asm.R1),
		)
	}
	code = append(code,
		asm.Xor.Imm(asm.R0, 0xffff),
		asm.StoreMem(asm.RFP, stackHeader+ipChecksum, asm.R0, asm.Half),
	)
	code = append(code, headerArgs()...)
	return append(code,
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
	)
}

// exits ends a program: the packet goes on changed, goes on untouched, or is dropped.
func exits() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R0, tcActOK),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcActUnspec).WithSymbol("skip"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcActShot).WithSymbol("drop"),
		asm.Return(),
	}
}

// word returns four bytes of a packet as a program loads and stores them.
func word(b []byte) int32 { return int32(binary.NativeEndian.Uint32(b)) }
