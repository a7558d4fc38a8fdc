package rawsock

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Classic BPF programs for raw sockets. A filter sees a packet from its outer header
// on (raw_rcv in net/ipv4/raw.c) and returns how many bytes of it to keep. What it
// drops is not charged to the socket's buffer, and not counted in its drops
// (sock_queue_rcv_skb_reason in net/core/sock.c).

// Offsets in an IPv4 header, in bytes.
const (
	offFragment    = 6
	offProtocol    = 9
	offSource      = 12
	offDestination = 16
	fragmentMask   = 0x3fff // MF and the fragment offset
)

// What a filter returns.
const (
	keep = slotSize
	drop = 0
)

// pairFilter keeps what came from p.Remote to p.Local, of which rest decides.
func pairFilter(p Pair, rest []bpf.Instruction) []bpf.Instruction {
	if p.anyLocal() {
		return append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: offSource, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: number(p.Remote), SkipTrue: 1},
			bpf.RetConstant{Val: drop},
		}, rest...)
	}
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offSource, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number(p.Remote), SkipTrue: 2},
		bpf.LoadAbsolute{Off: offDestination, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: number(p.Local), SkipTrue: 1},
		bpf.RetConstant{Val: drop},
	}, rest...)
}

// number returns an address as a filter loads it, and 0 for any.
func number(a netip.Addr) uint32 {
	if !a.IsValid() {
		return 0
	}
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func keepAll() []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: keep}} }
func dropAll() []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: drop}} }

// setFilter attaches a program to a socket, in place of the one before.
func setFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	return lend(fd, func(conn *net.IPConn) error { return ipv4.NewPacketConn(conn).SetBPF(raw) })
}

// removeFilter leaves a socket without one.
func removeFilter(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if errors.Is(err, unix.ENOENT) { // there is none
		return nil
	}
	return os.NewSyscallError("setsockopt SO_DETACH_FILTER", err)
}

// discard drops what the socket received before it had its filter. Where there is traffic,
// some of it may have been on its way past the filter.
func discard(fd int) {
	if takeAll(fd) > 0 {
		waitForDelivery()
		takeAll(fd)
	}
}

// mostQueued bounds takeAll: no default buffer (net.core.rmem_default) holds so many
// packets.
const mostQueued = 1 << 12

// takeAll takes all packets off a socket and returns how many.
func takeAll(fd int) (n int) {
	for ; n < mostQueued; n++ {
		if _, _, err := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT); err == unix.EAGAIN {
			break
		}
	}
	return n
}
