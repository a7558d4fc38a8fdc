package tun_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

// Checksums that the kernel or goipip leaves to the other side of the device.

// localPackets makes the host send one packet of each protocol into the device.
func localPackets(t *testing.T, h *host) map[string]func() {
	return map[string]func(){
		"UDP": func() { send(t, listen(t, h, here), strings.Repeat("odd", 333)) },
		"TCP": func() {
			err := h.Do(func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				t.Cleanup(func() { unix.Close(fd) })
				err = unix.Connect(fd, &unix.SockaddrInet4{Port: 7, Addr: there.As4()})
				if !errors.Is(err, unix.EINPROGRESS) {
					return fmt.Errorf("connect: %w", err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		},
	}
}

// transportSum returns the sum over pseudo-header and segment, 0xffff where the
// checksum is right.
func transportSum(p packet.IPv4) uint16 {
	return packet.Sum(p.Payload(), packet.PseudoHeaderSum(p))
}

// With offload the kernel leaves the checksum of local packets to the reader, and says
// where it goes.
func TestOffload_Read(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
	r := startReading(d.Queues()[0])
	offsets := map[string]uint16{"UDP": packet.UDPCsumOffset, "TCP": packet.TCPCsumOffset}
	for name, sendOne := range localPackets(t, h) {
		t.Run(name, func(t *testing.T) {
			sendOne()
			got := r.next(t)
			p := packet.IPv4(got.Bytes)
			if !p.Valid() || len(p) != p.TotalLength() || packet.Sum(p[:p.HdrLen()], 0) != 0xffff {
				t.Fatalf("not a whole packet: % x", []byte(p))
			}
			want := packet.VNetHdr{
				Flags:      packet.VNetNeedsCsum,
				CsumStart:  packet.IPv4HdrLen,
				CsumOffset: offsets[name],
				HdrLen:     got.VNet.HdrLen, // not to be trusted
			}
			if diff := cmp.Diff(want, got.VNet); diff != "" {
				t.Fatalf("header (-want +got):\n%s", diff)
			}
			if transportSum(p) == 0xffff {
				t.Fatal("the checksum is complete already")
			}
			if !packet.FinishChecksum(p, got.VNet) {
				t.Fatal("the checksum lies outside the packet")
			}
			if sum := transportSum(p); sum != 0xffff {
				t.Errorf("the finished checksum is wrong: sum %#04x", sum)
			}
		})
	}
}

// Without it, packets are as they would be on the wire.
func TestNoOffload_Read(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1})
	r := startReading(d.Queues()[0])
	for name, sendOne := range localPackets(t, h) {
		t.Run(name, func(t *testing.T) {
			sendOne()
			got := r.next(t)
			if got.VNet != (packet.VNetHdr{}) {
				t.Errorf("a header on a plain device: %+v", got.VNet)
			}
			if sum := transportSum(got.Bytes); sum != 0xffff {
				t.Errorf("the checksum is wrong: sum %#04x", sum)
			}
		})
	}
}

// Which checksums of written packets the kernel accepts.
func TestWrite_Checksum(t *testing.T) {
	const payload = "the payload"
	partial := packet.VNetHdr{
		Flags:      packet.VNetNeedsCsum,
		HdrLen:     packet.IPv4HdrLen + packet.UDPHdrLen,
		CsumStart:  packet.IPv4HdrLen,
		CsumOffset: packet.UDPCsumOffset,
	}
	tests := []struct {
		name    string
		offload bool
		hdr     packet.VNetHdr
		change  func(p packet.IPv4)
		accept  bool
	}{
		{"complete", true, packet.VNetHdr{}, nil, true},
		{"complete, plain device", false, packet.VNetHdr{}, nil, true},
		{"pseudo-header sum, NEEDS_CSUM", true, partial, leavePseudoSum, true},
		{"pseudo-header sum, not said", true, packet.VNetHdr{}, leavePseudoSum, false},
		{"pseudo-header sum, plain device", false, packet.VNetHdr{}, leavePseudoSum, false},
		{"wrong", true, packet.VNetHdr{}, changePayload, false},
		{"wrong, plain device", false, packet.VNetHdr{}, changePayload, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: tt.offload})
			q := d.Queues()[0]
			c := listen(t, h, here)
			p := datagram(t, far, localAddr(c), payload)
			if tt.change != nil {
				tt.change(p)
			}
			// In parts, like a header and a payload from different buffers.
			if err := write(q, tt.hdr, [][]byte{p[:packet.IPv4HdrLen], p[packet.IPv4HdrLen:]}); err != nil {
				t.Fatal(err)
			}
			if tt.accept {
				checkReceived(t, c, payload)
			} else {
				labtest.WaitFor(t, "a checksum error", func() bool { return udpChecksumErrors(t, h) == 1 })
			}
			last := datagram(t, far, localAddr(c), "last")
			if err := write(q, packet.VNetHdr{}, [][]byte{last}); err != nil {
				t.Fatal(err)
			}
			checkReceived(t, c, "last")
			if n := udpChecksumErrors(t, h); tt.accept && n != 0 {
				t.Errorf("%d checksum errors", n)
			}
		})
	}
}

// leavePseudoSum sets the UDP checksum to the sum of the pseudo-header, as a sender does that
// leaves the rest to a device.
func leavePseudoSum(p packet.IPv4) {
	sum := packet.PseudoHeaderSum(p)
	field := p.Payload()[packet.UDPCsumOffset:]
	field[0], field[1] = byte(sum>>8), byte(sum)
}

func changePayload(p packet.IPv4) { p[len(p)-1]++ }

// udpChecksumErrors returns the host's counter of UDP packets with a wrong
// checksum.
func udpChecksumErrors(t *testing.T, h *host) (n int) {
	t.Helper()
	err := h.Do(func() error {
		snmp, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(snmp)) {
			fields := strings.Fields(line)
			if fields[0] != "Udp:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			for i, name := range names {
				if name == "InCsumErrors" {
					_, err := fmt.Sscan(fields[i], &n)
					return err
				}
			}
		}
		return errors.New("no counter Udp InCsumErrors")
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A header that does not fit loses its packet, and no other.
func TestWrite_Refused(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
	q := d.Queues()[0]
	c := listen(t, h, here)
	p := datagram(t, far, localAddr(c), "payload")
	tests := []struct {
		name  string
		hdr   packet.VNetHdr
		parts [][]byte
	}{
		{"headers longer than the packet", packet.VNetHdr{HdrLen: uint16(len(p)) + 1}, [][]byte{p}},
		{"checksum outside the packet", packet.VNetHdr{Flags: packet.VNetNeedsCsum, CsumStart: uint16(len(p)), CsumOffset: 6}, [][]byte{p}},
		{"unknown GSO type", packet.VNetHdr{GSOType: 0x7f, GSOSize: 100}, [][]byte{p}},
		{"GSO without a segment size", packet.VNetHdr{GSOType: packet.VNetGSOTCPv4}, [][]byte{p}},
		{"neither IPv4 nor IPv6", packet.VNetHdr{}, [][]byte{{0x00, 1, 2, 3}}},
		{"nothing", packet.VNetHdr{}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := write(q, tt.hdr, tt.parts); !errors.Is(err, tun.ErrRefused) {
				t.Errorf("Write: %v, want %v", err, tun.ErrRefused)
			}
			if err := write(q, packet.VNetHdr{}, [][]byte{p}); err != nil {
				t.Fatal(err)
			}
			checkReceived(t, c, "payload")
		})
	}
}

// The largest packets pass both ways if the link's MTU allows them.
func TestLargestPackets(t *testing.T) {
	const mtu = 65515
	largest := strings.Repeat("x", mtu-packet.IPv4HdrLen-packet.UDPHdrLen)
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			h := newHost(t)
			d := open(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: offload})
			big := link
			big.MTU = mtu
			setup(t, d, big)
			c := listen(t, h, here)
			r := startReading(d.Queues()[0])
			for range 3 {
				send(t, c, largest)
			}
			for range 3 {
				if got := udpPayload(r.next(t).Bytes); got != largest {
					t.Fatalf("read %d bytes, want %d", len(got), len(largest))
				}
			}
			if err := write(d.Queues()[0], packet.VNetHdr{}, [][]byte{datagram(t, far, localAddr(c), largest)}); err != nil {
				t.Fatal(err)
			}
			checkReceived(t, c, largest)
		})
	}
}
