package netlab_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// line returns a match of packets whose String has all of parts in it.
func line(parts ...string) func(netlab.Captured) bool {
	return func(p netlab.Captured) bool {
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(p.String(), part) })
	}
}

func TestCapture(t *testing.T) {
	ns01, _, router := newLab2(t)
	ctx := labtest.Context(t)
	capture, err := router.Capture("veth01_p")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := ns01.Ping(ctx, ns02Addr, netlab.PingOptions{}); err != nil {
		t.Fatal(err)
	}

	request, err := capture.Wait(ctx, line("192.168.6.101 > 192.168.8.101: ICMP echo request", "seq 1, length 64"))
	if err != nil {
		t.Fatal(err)
	}
	reply, err := capture.Wait(ctx, line("192.168.8.101 > 192.168.6.101: ICMP echo reply", "seq 1, length 64"))
	if err != nil {
		t.Fatal(err)
	}
	if request.Outgoing || !reply.Outgoing {
		t.Errorf("outgoing: request %t, reply %t, want the reply only", request.Outgoing, reply.Outgoing)
	}
	if request.LinkType != unix.ARPHRD_ETHER || len(request.Data) != 84 {
		t.Errorf("link type %d and %d bytes, want %d and 84", request.LinkType, len(request.Data), unix.ARPHRD_ETHER)
	}
	if request.Time.Before(start) || reply.Time.Before(request.Time) || time.Now().Before(reply.Time) {
		t.Errorf("times: started %v, request %v, reply %v", start, request.Time, reply.Time)
	}

	if err := capture.Close(); err != nil {
		t.Fatal(err)
	}
	// ARP passed too, and is not IP.
	if packets := capture.Packets(); len(packets) != 2 || capture.Dropped() != 0 {
		t.Errorf("captured %v and dropped %d, want request and reply", packets, capture.Dropped())
	}
	if _, err := capture.Wait(ctx, line("no such")); !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "echo reply") {
		t.Errorf("wait on a closed capture: %v, want %v and the last packet", err, os.ErrClosed)
	}
	if _, err := capture.Wait(ctx, line("echo request")); err != nil {
		t.Errorf("what was captured before Close is gone: %v", err)
	}
}

func TestCaptureWaits(t *testing.T) {
	ns01, _, _ := newLab2(t)
	capture, err := ns01.Capture("veth01")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := capture.Wait(ctx, line()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for what does not come: %v, want %v", err, context.DeadlineExceeded)
	}

	waited := make(chan error)
	go func() {
		_, err := capture.Wait(labtest.Context(t), line("echo reply", "seq 2"))
		waited <- err
	}()
	if _, err := ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Count: 2}); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestCaptureOutlivesTheDevice(t *testing.T) {
	ns01, _, _ := newLab2(t)
	if _, err := ns01.Capture("no-such"); err == nil {
		t.Error("captures a device that there is not")
	}
	capture, err := ns01.Capture("veth01")
	if err != nil {
		t.Fatal(err)
	}
	again := func() error {
		return errors.Join(ns01.SetDown("veth01"), ns01.SetUp("veth01"), ns01.AddRoute("192.168.8.0/24", "192.168.6.1"))
	}
	if err := again(); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "an answer after the device was down", func() bool {
		r, err := ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{})
		return err == nil && r.Received == 1
	})
	if _, err := capture.Wait(labtest.Context(t), line("echo reply")); err != nil {
		t.Error(err)
	}
	if err := ns01.DeleteLink("veth01"); err != nil {
		t.Fatal(err)
	}
	if err := capture.Close(); err != nil {
		t.Error(err)
	}
}

// A veth passes what TCP sends in one piece, to be segmented and summed by a device that never comes.
func TestCapturePartialChecksum(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	capture, err := ns02.Capture("veth02")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netlab.Transfer(labtest.Context(t), ns01, ns02, netip.AddrPortFrom(ns02Addr, 5001), 1_000_000); err != nil {
		t.Fatal(err)
	}
	p, err := capture.Wait(labtest.Context(t), func(p netlab.Captured) bool { return len(p.Data) > 1500 })
	if err != nil {
		t.Fatal(err)
	}
	if layers := p.Layers(); !p.CsumPartial || len(layers) != 2 || !strings.HasSuffix(layers[1], "checksum partial") {
		t.Errorf("partial %t, layers %q, want a partial checksum", p.CsumPartial, layers)
	}
}

func TestCaptureFragments(t *testing.T) {
	ns01, _, router := newLab2(t)
	capture, err := router.Capture("veth01_p")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Size: 3000}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ICMP echo request", "ICMP fragment at byte 1480, length 1480", "ICMP fragment at byte 2960, length 48"} {
		if _, err := capture.Wait(labtest.Context(t), line("IP 192.168.6.101 > 192.168.8.101: "+want)); err != nil {
			t.Error(err)
		}
	}
}
