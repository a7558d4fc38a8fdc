package netlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

const (
	// datagramIndex is the length of the number that each datagram begins with.
	datagramIndex = 4
	// burstBytes and burstCount bound what is on the way at once, so that it fits the usual socket buffer and device
	// queue: a datagram that is lost was lost by the network under test.
	burstBytes = 64 << 10
	burstCount = 64
	// quietTime is how long the network may hold a datagram before it counts as lost.
	quietTime = 2 * time.Second
)

// Datagrams sends n UDP datagrams of size bytes, from 4 to 65507, from a socket of from to one of to at addr, where port 0
// lets the kernel choose, in bursts. It returns how many arrived. That some did not is no error; that one arrived twice, or
// was changed on the way, is.
func Datagrams(ctx context.Context, from, to *Host, addr netip.AddrPort, n, size int) (received int, err error) {
	d := &datagrams{seed: rand.Uint64(), size: size, seen: make([]bool, n), buf: make([]byte, 1<<16)}
	if err := d.run(ctx, from, to, addr); err != nil {
		return d.received, fmt.Errorf("send %d datagrams of %d bytes from host %s to %v on host %s, of which %d arrived: %w",
			n, size, from.Name, addr, to.Name, d.received, err)
	}
	return d.received, nil
}

type datagrams struct {
	seed     uint64
	size     int
	seen     []bool
	received int
	in       *net.UDPConn
	buf      []byte
}

func (d *datagrams) run(ctx context.Context, from, to *Host, addr netip.AddrPort) error {
	if d.size < datagramIndex {
		return fmt.Errorf("a datagram has at least %d bytes", datagramIndex)
	}
	err := to.Do(func() (err error) {
		d.in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		return err
	}
	defer d.in.Close()
	// Not connected, because a connected socket also reports ICMP errors, which are about datagrams that were lost (udp(7)).
	var out *net.UDPConn
	err = from.Do(func() (err error) {
		out, err = net.ListenUDP("udp", nil)
		return err
	})
	if err != nil {
		return err
	}
	defer out.Close()
	defer context.AfterFunc(ctx, func() { d.in.SetReadDeadline(time.Now()) })()

	burst := max(1, min(burstCount, burstBytes/d.size))
	for sent := 0; sent < len(d.seen); {
		until := min(sent+burst, len(d.seen))
		expected := d.received + until - sent
		for ; sent < until; sent++ {
			if _, err := out.WriteTo(d.datagram(sent), d.in.LocalAddr()); err != nil {
				return err
			}
		}
		if sent == len(d.seen) {
			expected = sent // Now also those that came late.
		}
		if err := d.receive(ctx, expected); err != nil {
			return err
		}
	}
	return nil
}

// datagram returns datagram i: its index, and content that belongs to this index and run.
func (d *datagrams) datagram(i int) []byte {
	b := make([]byte, d.size)
	content(d.seed + uint64(i)).Read(b)
	binary.BigEndian.PutUint32(b, uint32(i))
	return b
}

// receive takes datagrams until as many have arrived, or none has for a while.
func (d *datagrams) receive(ctx context.Context, expected int) error {
	for d.received < expected {
		if err := d.in.SetReadDeadline(time.Now().Add(quietTime)); err != nil {
			return err
		}
		// That may have overridden the deadline which the end of ctx set, so this comes after it.
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := d.in.Read(d.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ctx.Err()
		} else if err != nil {
			return err
		}
		if err := d.take(d.buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// take counts a datagram that arrived, if it is one that was sent.
func (d *datagrams) take(b []byte) error {
	if len(b) < datagramIndex {
		return fmt.Errorf("a datagram of %d bytes arrived", len(b))
	}
	i := int(binary.BigEndian.Uint32(b))
	if i >= len(d.seen) {
		return fmt.Errorf("datagram %d arrived, which was not sent", i)
	}
	if want := d.datagram(i); !bytes.Equal(b, want) {
		return fmt.Errorf("datagram %d is not what was sent: %w", i, differ(b, want))
	}
	if d.seen[i] {
		return fmt.Errorf("datagram %d arrived twice", i)
	}
	d.seen[i] = true
	d.received++
	return nil
}
