package rawsock

import "golang.org/x/sys/unix"

// For tests of what has no other way out than through the kernel.
var (
	RefusalOf   = refusalOf
	ShareFilter = shareFilter
)

// Queued reports whether the socket holds a packet.
func (r *Receiver) Queued() bool {
	return r.fd.Control(func(fd int) error {
		_, _, err := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT|unix.MSG_PEEK)
		return err
	}) == nil
}

// DropTotal returns the total of a kernel's counts.
func DropTotal(counts ...uint32) (total uint64) {
	var c dropCount
	for _, n := range counts {
		total = c.update(func() (uint32, error) { return n, nil })
	}
	return total
}
