package tun_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netns"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

// checkWrite fails unless writing a packet ends with want.
func checkWrite(t *testing.T, q *tun.Queue, want error) {
	t.Helper()
	p := datagram(t, far, far, "x")
	if err := write(q, packet.VNetHdr{}, [][]byte{p}); !errors.Is(err, want) {
		t.Errorf("Write: %v, want %v", err, want)
	}
}

func checkRead(t *testing.T, q *tun.Queue, want error) {
	t.Helper()
	if packets, err := read(tun.NewReader(), q); !errors.Is(err, want) || len(packets) != 0 {
		t.Errorf("Read: %d packets, %v, want %v", len(packets), err, want)
	}
}

// Deleting the link wakes readers, and all later calls fail.
func TestDeleted_WhileReading(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 3, Offload: true})
	var readings []*reading
	for _, q := range d.Queues() {
		readings = append(readings, startReading(q))
	}
	waitParked(t, len(readings))
	if err := h.DeleteLink("tun01"); err != nil {
		t.Fatal(err)
	}
	for i, q := range d.Queues() {
		if err := readings[i].end(t); !errors.Is(err, tun.ErrDeleted) {
			t.Errorf("queue %d: Read: %v, want %v", i, err, tun.ErrDeleted)
		}
		for range 3 {
			checkRead(t, q, tun.ErrDeleted)
			checkWrite(t, q, tun.ErrDeleted)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	checkRead(t, d.Queues()[0], os.ErrClosed)
	checkWrite(t, d.Queues()[0], os.ErrClosed)
}

// The same where no reader waits, and the first call is a read or a write.
func TestDeleted_BeforeUse(t *testing.T) {
	tests := []struct {
		name string
		use  func(t *testing.T, q *tun.Queue)
	}{
		{"read", func(t *testing.T, q *tun.Queue) { checkRead(t, q, tun.ErrDeleted) }},
		{"write", func(t *testing.T, q *tun.Queue) { checkWrite(t, q, tun.ErrDeleted) }},
	}
	for _, up := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s,up=%v", tt.name, up), func(t *testing.T) {
				h := newHost(t)
				d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
				if up {
					setup(t, d, link)
				}
				if err := h.DeleteLink("tun01"); err != nil {
					t.Fatal(err)
				}
				tt.use(t, d.Queues()[0])
			})
		}
	}
}

// While the link is down each packet is lost, and when it is up again packets pass. A
// reader waits throughout.
func TestDown(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
	q := d.Queues()[0]
	checkWrite(t, q, tun.ErrDown)
	setup(t, d, link)

	r := startReading(q)
	c := listen(t, h, here)
	checkTraffic(t, q, r, c)
	for range 3 {
		if err := h.SetDown("tun01"); err != nil {
			t.Fatal(err)
		}
		checkWrite(t, q, tun.ErrDown)
		checkWrite(t, q, tun.ErrDown)
		if err := h.SetUp("tun01"); err != nil {
			t.Fatal(err)
		}
		checkTraffic(t, q, r, c)
	}
}

func TestRenamed(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1})
	q := d.Queues()[0]
	r := startReading(q)
	c := listen(t, h, here)
	l, err := h.Netlink().LinkByName("tun01")
	if err != nil {
		t.Fatal(err)
	}
	// Down, because not every kernel renames a link that is up.
	for _, err := range []error{
		h.Netlink().LinkSetDown(l), h.Netlink().LinkSetName(l, "office"), h.Netlink().LinkSetUp(l),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	checkTraffic(t, q, r, c)
	if d.Name() != "tun01" {
		t.Errorf("Name() = %q, want the name it was created with", d.Name())
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if hasLink(t, h, "office") {
		t.Error("the renamed link is there after Close")
	}
}

// A link can be used in another namespace after it was moved there, which takes it down and
// removes its addresses.
func TestMovedToNamespace(t *testing.T) {
	labtest.Need(t, "root", "tun")
	lab := labtest.New(t)
	h, other := addHost(t, lab, "host"), addHost(t, lab, "other")
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
	q := d.Queues()[0]
	r := startReading(q)
	waitParked(t, 1)

	move(t, h, "tun01", other)
	if hasLink(t, h, "tun01") || !hasLink(t, other, "tun01") {
		t.Fatal("the link was not moved")
	}
	checkWrite(t, q, tun.ErrDown)
	for _, err := range []error{other.SetUp("tun01"), other.AddPeer("tun01", here.String(), there.String())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	checkTraffic(t, q, r, listen(t, other, here))

	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v, want %v", err, os.ErrClosed)
	}
	if hasLink(t, other, "tun01") {
		t.Error("the moved link is there after Close")
	}
}

func move(t *testing.T, from *host, name string, to *host) {
	t.Helper()
	l, err := from.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	err = to.Do(func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		return from.Netlink().LinkSetNsFd(l, int(ns))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 8, Offload: true})
	var readings []*reading
	for _, q := range d.Queues() {
		readings = append(readings, startReading(q))
	}
	waitParked(t, len(readings))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if hasLink(t, h, "tun01") {
		t.Error("the link is there after Close")
	}
	for i, q := range d.Queues() {
		if err := readings[i].end(t); !errors.Is(err, os.ErrClosed) {
			t.Errorf("queue %d: Read: %v, want %v", i, err, os.ErrClosed)
		}
		checkWrite(t, q, os.ErrClosed)
	}
	// The name is free again.
	openUp(t, h, tun.Config{Name: "tun01", Queues: 8})
}
