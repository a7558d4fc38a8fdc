package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// captureLimit is how much a capture keeps, in bytes of packets.
const captureLimit = 64 << 20

// Captured is a captured IP packet.
type Captured struct {
	// Time is when the kernel saw it.
	Time time.Time
	// Outgoing says that this machine, and not the other side of the device, sent it.
	Outgoing bool
	// LinkType is the device's, an ARPHRD_ constant: ARPHRD_ETHER, ARPHRD_TUNNEL, …
	LinkType uint16
	// CsumPartial says that the innermost TCP or UDP checksum is the pseudo-header's only, because a device is to finish it:
	// usual on a veth, and no fault.
	CsumPartial bool
	// Data is the packet from its outermost IP header on, more than the MTU where the kernel segments late or has
	// merged. It belongs to the capture; do not change it.
	Data []byte
}

// Capture collects the IPv4 and IPv6 packets that pass a device in either direction.
type Capture struct {
	name  string // in messages
	sock  *packetSocket
	ended chan struct{} // closed at the end of collect

	mu      sync.Mutex
	packets []Captured // only ever appended to
	size    int        // bytes in packets
	dropped int
	err     error         // why collect ended
	changed chan struct{} // closed, and replaced, when packets or err change
}

// Capture starts a capture on dev. It sees every packet that passes after its return, until the lab or the caller
// closes it.
func (h *Host) Capture(dev string) (*Capture, error) {
	link, err := h.link(dev)
	if err != nil {
		return nil, err
	}
	c := &Capture{
		name:    fmt.Sprintf("%s on host %s", dev, h.Name),
		ended:   make(chan struct{}),
		changed: make(chan struct{}),
	}
	err = h.Do(func() error {
		c.sock, err = openPacketSocket(link.Attrs().Index)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", c.name, err)
	}
	go c.collect()
	h.lab.onClose(c.Close)
	return c, nil
}

// Wait returns the first captured packet that matches, in the order of their capture, beginning with the oldest. When
// ctx ends before there is one, the error says what came last. To prove that a packet does not come, wait for one that
// was sent after it, and look into Packets.
func (c *Capture) Wait(ctx context.Context, match func(Captured) bool) (Captured, error) {
	for seen := 0; ; {
		packets, changed, err := c.snapshot()
		if i := slices.IndexFunc(packets[seen:], match); i >= 0 {
			return packets[seen+i], nil
		}
		seen = len(packets)
		if err == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		last := "none"
		if seen > 0 {
			last = packets[seen-1].String()
		}
		return Captured{}, fmt.Errorf("capture %s: no match in %d packets, the last %q: %w", c.name, seen, last, err)
	}
}

// Packets returns what has been captured so far, the oldest first. What is still on its way from the kernel is missing;
// see Wait.
func (c *Capture) Packets() []Captured {
	packets, _, _ := c.snapshot()
	return packets
}

// Dropped returns how many packets are missing because they came too fast or were too many; ten thousands fit.
func (c *Capture) Dropped() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.countDrops()
	return c.dropped
}

// Close ends the capture. What it has collected stays readable. Further calls do nothing.
func (c *Capture) Close() error {
	c.mu.Lock()
	c.countDrops()
	c.mu.Unlock()
	err := c.sock.close()
	<-c.ended
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close capture %s: %w", c.name, err)
	}
	return nil
}

func (c *Capture) snapshot() (packets []Captured, changed <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clip(c.packets), c.changed, c.err
}

// countDrops is called with c.mu held. Of a closed socket there is nothing more to count.
func (c *Capture) countDrops() {
	if n, err := c.sock.drops(); err == nil {
		c.dropped += n
	}
}

// collect reads the socket to its end.
func (c *Capture) collect() {
	defer close(c.ended)
	for {
		p, err := c.sock.read()
		if errors.Is(err, unix.ENETDOWN) {
			continue // The device went down, and may come up again; see packet(7).
		}
		c.mu.Lock()
		switch {
		case err != nil:
			c.err = err
		case c.size+len(p.Data) > captureLimit:
			c.dropped++
		default:
			p.Data = bytes.Clone(p.Data)
			c.packets = append(c.packets, p)
			c.size += len(p.Data)
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}
