package tun

import (
	"os"

	"golang.org/x/sys/unix"
)

// SetCarrier sets whether the link has a carrier, as it has at first. Without one the kernel
// sends no packets into the link, and routing daemons look for another way; packets that are
// written arrive as before. It needs Linux 5.0 (TUNSETCARRIER).
func (d *Device) SetCarrier(on bool) error {
	value := 0
	if on {
		value = 1
	}
	return d.queues[0].fd.Control(func(fd int) error {
		return os.NewSyscallError("TUNSETCARRIER", unix.IoctlSetPointerInt(fd, unix.TUNSETCARRIER, value))
	})
}
