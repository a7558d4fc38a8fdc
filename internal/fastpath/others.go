package fastpath

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Others returns what programs of others would see packets of the tunnel if those were not
// carried here, those that stand behind its own; empty for none. It must be called in the
// Host's network namespace, and waits for the kernel.
func (t *Tunnel) Others() string {
	h := t.host
	h.mu.Lock()
	device := t.device
	h.mu.Unlock()
	if found := behind(t.index, ebpf.AttachTCXEgress, h.programs.GoipipOut); found != "" {
		return "on the link there is " + found
	}
	if device == 0 {
		return ""
	}
	if found := behind(device, ebpf.AttachTCXIngress, h.programs.GoipipIn); found != "" {
		return "on the device that packets come by there is " + found
	}
	return ""
}

// behind returns which program runs after our own on a device, if it is none of another
// goipip's.
func behind(device int, attach ebpf.AttachType, own *ebpf.Program) string {
	attached, err := link.QueryPrograms(link.QueryOptions{Target: device, Attach: attach})
	if err != nil {
		return "" // the device is gone
	}
	info, err := own.Info()
	if err != nil {
		return ""
	}
	id, _ := info.ID()
	i := slices.IndexFunc(attached.Programs, func(p link.AttachedProgram) bool { return p.ID == id })
	for _, p := range attached.Programs[i+1:] {
		name, err := nameOf(p.ID)
		if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && !strings.HasPrefix(name, "goipip_") {
			return fmt.Sprintf("a BPF program (%s, %d)", attach, p.ID)
		}
	}
	return ""
}

// nameOf returns the name of a program. It takes CAP_SYS_ADMIN.
func nameOf(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}
