package tun_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/packet"
	"goipip/tun"
)

// checkAllocs fails if a run of work allocates, or reports that it did not do its work:
// a function that does nothing allocates nothing either.
func checkAllocs(t *testing.T, work func() bool) {
	t.Helper()
	failed := false
	allocs := testing.AllocsPerRun(100, func() { failed = failed || !work() })
	if failed {
		t.Error("a run did not do its work")
	}
	if allocs != 0 {
		t.Errorf("%v allocations a run, want 0", allocs)
	}
}

func TestQueue_Allocs(t *testing.T) {
	bothKinds(t, func(t *testing.T, vnet bool) {
		q, _, peer := newQueue(t, vnet)
		r, w := tun.NewReader(), tun.NewWriter()
		in := message(everyField, vnet, []byte("in"))
		hdr := packet.VNetHdr{}
		if vnet {
			hdr = everyField
		}
		out := message(hdr, vnet, []byte("out and more"))
		parts := [][]byte{[]byte("out "), []byte("and "), []byte("more")}
		buf := make([]byte, 64)

		t.Run("Read", func(t *testing.T) {
			checkAllocs(t, func() bool {
				const batch = 5
				for range batch {
					if _, err := unix.Write(peer, in); err != nil {
						return false
					}
				}
				packets, err := read(r, q)
				return err == nil && len(packets) == batch && string(packets[batch-1].Bytes) == "in"
			})
		})
		t.Run("Write", func(t *testing.T) {
			checkAllocs(t, func() bool {
				if w.Write(q, hdr, parts) != nil {
					return false
				}
				n, err := unix.Read(peer, buf)
				return err == nil && string(buf[:n]) == string(out)
			})
		})
		t.Run("Write, refused", func(t *testing.T) {
			tooMany := make([][]byte, 1025) // UIO_MAXIOV is 1024
			checkAllocs(t, func() bool { return w.Write(q, hdr, tooMany) == tun.ErrRefused })
		})
	})
}

// Even 1000 parts allocate nothing, once the Writer has grown.
func TestQueue_AllocsOfManyParts(t *testing.T) {
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := tun.NewQueue(f, true)
	if err != nil {
		t.Fatal(err)
	}
	w := tun.NewWriter()
	parts := make([][]byte, 1000)
	for i := range parts {
		parts[i] = []byte{byte(i)}
	}
	checkAllocs(t, func() bool { return w.Write(q, everyField, parts) == nil })
}

// On a device: a packet of the host is read, and written back as an echo.
func TestDevice_Allocs(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			h := newHost(t)
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: offload})
			q, r, w := d.Queues()[0], tun.NewReader(), tun.NewWriter()
			fd := dial(t, h, far)
			parts := make([][]byte, 2)
			payload, buf := make([]byte, 1000), make([]byte, 2000)
			checkAllocs(t, func() bool {
				payload[0]++
				if _, err := unix.Write(fd, payload); err != nil {
					return false
				}
				packets, err := read(r, q)
				if err != nil || len(packets) != 1 {
					return false
				}
				// Swapping the addresses changes no checksum, and the ports are
				// equal.
				p := packet.IPv4(packets[0].Bytes)
				from, to := p.Source(), p.Destination()
				p.SetSource(to)
				p.SetDestination(from)
				parts[0], parts[1] = p[:packet.IPv4HdrLen], p[packet.IPv4HdrLen:]
				if w.Write(q, packets[0].VNet, parts) != nil {
					return false
				}
				n, err := unix.Read(fd, buf)
				return err == nil && string(buf[:n]) == string(payload)
			})
		})
	}
}

// dial returns a UDP socket on h with equal ports at both ends. Its reads time out.
func dial(t *testing.T, h *host, to netip.AddrPort) (fd int) {
	t.Helper()
	err := h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	timeout := unix.NsecToTimeval(deadline.Nanoseconds())
	for _, err := range []error{
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: here.As4()}),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return fd
}
