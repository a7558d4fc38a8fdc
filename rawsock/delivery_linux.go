package rawsock

import (
	"time"

	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL (linux/membarrier.h; Linux 4.3).
const membarrierGlobal = 1

// deliveryTime is more than the kernel takes to deliver a packet that has arrived.
const deliveryTime = 10 * time.Millisecond

// waitForDelivery waits until the kernel has delivered all packets by the sockets and
// filters as they were before. That takes some milliseconds.
func waitForDelivery() {
	// In the kernel, delivery is one RCU read-side section, and this waits for all of them
	// (membarrier(2)), but not with nohz_full.
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(deliveryTime)
	}
}
