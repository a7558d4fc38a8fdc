package netlab_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// anyPort is ns02 at a port of the kernel's choice.
var anyPort = netip.AddrPortFrom(ns02Addr, 0)

func TestTransfer(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	for _, n := range []int64{0, 1, 10_000_000} {
		r, err := netlab.Transfer(labtest.Context(t), ns01, ns02, anyPort, n)
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes != n || r.SumSent != r.SumReceived || r.Duration <= 0 {
			t.Errorf("%d bytes: %+v", n, r)
		}
	}
	a, errA := netlab.Transfer(labtest.Context(t), ns01, ns02, anyPort, 100)
	b, errB := netlab.Transfer(labtest.Context(t), ns01, ns02, netip.AddrPortFrom(ns02Addr, 5001), 100)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if a.SumSent == b.SumSent {
		t.Error("two transfers have the same content")
	}
}

func TestTransferErrors(t *testing.T) {
	ns01, ns02, router := newLab2(t)
	if _, err := netlab.Transfer(labtest.Context(t), ns01, ns02, netip.AddrPortFrom(ns01Addr, 0), 1); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address that the host has not: %v, want %v", err, unix.EADDRNOTAVAIL)
	}
	if err := ns02.AddAddr("lo", "10.0.0.1/32"); err != nil {
		t.Fatal(err)
	}
	if _, err := netlab.Transfer(labtest.Context(t), ns01, ns02, netip.MustParseAddrPort("10.0.0.1:0"), 1); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("an address without a route: %v, want %v", err, unix.ENETUNREACH)
	}

	// Connecting never ends, and neither does a transfer that has begun.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r, err := netlab.Transfer(ctx, ns01, ns02, anyPort, 1<<40); !errors.Is(err, context.DeadlineExceeded) || r.Bytes == 0 {
		t.Errorf("a transfer of 1 TiB: %v after %d bytes, want %v", err, r.Bytes, context.DeadlineExceeded)
	}
	if err := router.Sysctl("net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r, err := netlab.Transfer(ctx, ns01, ns02, anyPort, 1); !errors.Is(err, context.DeadlineExceeded) || r.Bytes != 0 {
		t.Errorf("a transfer that cannot connect: %v after %d bytes, want %v", err, r.Bytes, context.DeadlineExceeded)
	}
}

func TestDatagrams(t *testing.T) {
	labtest.Long(t)
	ns01, ns02, router := newLab2(t)
	for _, size := range []int{4, 100, 1472, 1473, 65507} {
		if n, err := netlab.Datagrams(labtest.Context(t), ns01, ns02, anyPort, 200, size); err != nil || n != 200 {
			t.Errorf("%d bytes: %d of 200 arrived, %v", size, n, err)
		}
	}
	if n, err := netlab.Datagrams(labtest.Context(t), ns01, ns02, anyPort, 1, 65508); !errors.Is(err, unix.EMSGSIZE) || n != 0 {
		t.Errorf("65508 bytes: %d arrived, %v, want %v", n, err, unix.EMSGSIZE)
	}

	// The kernel sets DF, until the router's answer has taught it the path's MTU.
	if err := errors.Join(router.SetMTU("veth02_p", 1400), ns02.SetMTU("veth02", 1400)); err != nil {
		t.Fatal(err)
	}
	if n, err := netlab.Datagrams(labtest.Context(t), ns01, ns02, anyPort, 200, 1472); err != nil || n == 0 || n == 200 {
		t.Errorf("over the path's mtu: %d of 200 arrived, %v, want the first few lost", n, err)
	}

	if err := router.Sysctl("net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	if n, err := netlab.Datagrams(labtest.Context(t), ns01, ns02, anyPort, 1, 100); err != nil || n != 0 {
		t.Errorf("without a way: %d arrived, %v, want 0", n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := netlab.Datagrams(ctx, ns01, ns02, anyPort, 1, 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
	}
}
