package tun_test

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab/labtest"
	"goipip/tun"
)

// Devices of one Host open, change and close at once.
func TestHost_Concurrent(t *testing.T) {
	h := newHost(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 3 {
				var d *tun.Device
				err := h.Do(func() (err error) {
					d, err = h.tun.Open(tun.Config{Name: fmt.Sprint("tun", i), Queues: 2, Offload: true})
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
				to := link
				to.MTU = 1300 + i
				err = errors.Join(d.Setup(link), d.Change(link, to))
				if l, linkErr := h.Netlink().LinkByIndex(d.Index()); linkErr != nil || l.Attrs().Name != d.Name() || l.Attrs().MTU != to.MTU {
					err = errors.Join(err, linkErr, fmt.Errorf("%s is %+v", d.Name(), l))
				}
				if n := d.QueueDrops(); n != 0 {
					err = errors.Join(err, fmt.Errorf("QueueDrops() = %d", n))
				}
				if err := errors.Join(err, d.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if names := linkNames(t, h); len(names) != 1 {
		t.Errorf("links left: %q", names)
	}
}

// After Host.Close, devices carry packets but cannot be changed.
func TestHost_Close(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1})
	c := listen(t, h, here)
	for range 4096 + 7 {
		send(t, c, "x")
	}
	if got := d.QueueDrops(); got != 7 {
		t.Errorf("QueueDrops() = %d, want 7", got)
	}
	for range 2 {
		h.tun.Close()
	}
	to := link
	to.MTU = 1400
	for what, err := range map[string]error{
		"Open": tryOpen(h, tun.Config{Name: "tun02", Queues: 1}), "Setup": d.Setup(link), "Change": d.Change(link, to),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want %v", what, err, os.ErrClosed)
		}
	}
	if hasLink(t, h, "tun02") {
		t.Error("a device that did not open is there")
	}
	if got := d.QueueDrops(); got != 7 {
		t.Errorf("QueueDrops() = %d, want the last known 7", got)
	}
	r := startReading(d.Queues()[0])
	for range 4096 { // the packets in the ring
		r.next(t)
	}
	checkTraffic(t, d.Queues()[0], r, c)
}

// Subnets of more than two addresses have a broadcast address (RFC 3021).
func TestSetup_Broadcast(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	setup(t, d, tun.Link{MTU: 1480, Remote: link.Remote, Addresses: prefixes(
		"10.1.2.3/24", "10.2.2.3/22", "10.3.0.1/9", "10.4.0.5/30", "10.5.0.4/31", "10.6.0.1/32")})
	want := map[string]string{
		"10.1.2.3": "10.1.2.255", "10.2.2.3": "10.2.3.255", "10.3.0.1": "10.127.255.255",
		"10.4.0.5": "10.4.0.7", "10.5.0.4": "<nil>", "10.6.0.1": "<nil>",
	}
	l, err := h.Netlink().LinkByIndex(d.Index())
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := h.Netlink().AddrList(l, netlink.FAMILY_V4)
	if err != nil || len(addrs) != len(want) {
		t.Fatalf("%d addresses, %v, want %d", len(addrs), err, len(want))
	}
	for _, a := range addrs {
		if got := a.Broadcast.String(); got != want[a.IP.String()] {
			t.Errorf("%v has the broadcast address %s, want %s", a.IPNet, got, want[a.IP.String()])
		}
	}
}

// Setup accepts a route that the link has already, but not one that leads elsewhere.
func TestSetup_RouteExists(t *testing.T) {
	h := newHost(t)
	l := link
	l.Addresses = prefixes("10.1.2.3/24", "10.1.2.3/24")
	l.Routes = []tun.Route{route("10.1.2.0/24", 0, 0), route("10.9.0.0/16", 0, 0), route("10.9.0.0/16", 0, 254)}
	setup(t, open(t, h, tun.Config{Name: "tun01", Queues: 1}), l)
	err := open(t, h, tun.Config{Name: "tun02", Queues: 1}).Setup(tun.Link{
		MTU: 1480, Remote: link.Remote, Routes: []tun.Route{route("10.9.0.0/16", 0, 0)},
	})
	if want := "set up tun02: route to 10.9.0.0/16: "; !errors.Is(err, os.ErrExist) || err.Error()[:len(want)] != want {
		t.Errorf("Setup: %v, want %q and %v", err, want, os.ErrExist)
	}
}

// Open and Setup of a device beside others, and QueueDrops.
func BenchmarkDevice(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			labtest.Need(b, "root", "tun")
			h, err := labtest.New(b).Host("host")
			if err != nil {
				b.Fatal(err)
			}
			if err := h.Do(func() error { return benchmarkDevice(b, others) }); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func benchmarkDevice(b *testing.B, others int) error {
	host, err := tun.NewHost()
	if err != nil {
		return err
	}
	defer host.Close()
	var devices []*tun.Device
	open := func() error {
		d, err := host.Open(tun.Config{Name: fmt.Sprint("tun", len(devices)), Queues: 2, Offload: true})
		if err != nil {
			return err
		}
		devices = append(devices, d)
		return d.Setup(link)
	}
	// The kernel takes 20 ms to close a device, but as long for many at once.
	closeBut := func(n int) {
		var wg sync.WaitGroup
		for _, d := range devices[n:] {
			wg.Go(func() { d.Close() })
		}
		wg.Wait()
		devices = devices[:n]
	}
	defer closeBut(0)
	for range others {
		if err := open(); err != nil {
			return err
		}
	}
	var drops time.Duration
	for b.Loop() {
		if err := open(); err != nil {
			return err
		}
		start := time.Now()
		devices[len(devices)-1].QueueDrops()
		drops += time.Since(start)
		if len(devices) == others+64 {
			b.StopTimer()
			closeBut(others)
			b.StartTimer()
		}
	}
	b.ReportMetric(float64(drops.Nanoseconds())/float64(b.N), "ns/QueueDrops")
	b.StopTimer()
	return nil
}
