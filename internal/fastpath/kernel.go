package fastpath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// specialize sets the constants of the programs, for this kernel.
func specialize(spec *ebpf.CollectionSpec) error {
	if takesDecapFlag() {
		return spec.Variables[programsVarDecapFlags].Set(uint64(decapIPXIP4))
	}
	return nil
}

// findTCX returns an error unless the kernel has tcx.
func findTCX() error {
	const loopback = 1 // its index in each network namespace
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	return err
}

// decapIPXIP4 is BPF_F_ADJ_ROOM_DECAP_IPXIP4, by which bpf_skb_adjust_room makes an ordinary
// superpacket of a tunnel's.
const decapIPXIP4 = 1 << 11

// takesDecapFlag reports whether the kernel knows decapIPXIP4: others refuse it.
func takesDecapFlag() bool {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, -20),
		asm.Mov.Imm(asm.R3, unix.BPF_ADJ_ROOM_MAC),
		asm.Mov.Imm(asm.R4, unix.BPF_F_ADJ_ROOM_FIXED_GSO|unix.BPF_F_ADJ_ROOM_DECAP_L3_IPV4|decapIPXIP4),
		asm.FnSkbAdjustRoom.Call(),
		asm.Return(),
	}})
	if err != nil {
		return false
	}
	defer program.Close()
	const etherIPv4 = 12
	frame := make([]byte, 100)
	frame[etherIPv4], frame[14], frame[34] = 0x08, 0x45, 0x45
	result, err := program.Run(&ebpf.RunOptions{Data: frame})
	return err == nil && result == 0
}

// refusal says what is missing where the kernel refuses.
func refusal(err error) error {
	var unverified *ebpf.VerifierError
	switch {
	case errors.As(err, &unverified):
		return fmt.Errorf("this kernel's verifier refuses the programs, which is a fault of goipip; please report it: %w", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: needs CAP_BPF and CAP_NET_ADMIN in the initial user namespace: run as root of the machine, or give a container "+
			"these capabilities", unix.EPERM)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("needs Linux 6.6 with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS: %w", err)
	}
	return err
}
