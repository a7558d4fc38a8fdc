package tun_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"goipip/internal/netlab/labtest"
	"goipip/tun"
)

func TestOpen_Name(t *testing.T) {
	h := newHost(t)
	tests := []struct{ name, want string }{
		{"tun01", "tun01"},
		{"fifteen-bytes-x", "fifteen-bytes-x"},
		{"", "goipip0"},
		{"", "goipip1"},
		{"goipip2", "goipip2"},
		{"", "goipip3"}, // the first that is free
	}
	for _, tt := range tests {
		d := open(t, h, tun.Config{Name: tt.name, Queues: 1})
		if d.Name() != tt.want {
			t.Errorf("name %q became %q, want %q", tt.name, d.Name(), tt.want)
		}
		l, err := h.Netlink().LinkByName(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		if d.Index() != l.Attrs().Index {
			t.Errorf("%s: Index = %d, want %d", tt.want, d.Index(), l.Attrs().Index)
		}
	}
}

// A name that is taken by any kind of link is an error that names the remedy, and the link
// with that name stays as it is.
func TestOpen_NameTaken(t *testing.T) {
	h := newHost(t)
	open(t, h, tun.Config{Name: "tun01", Queues: 2, Offload: true})
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1"},
		&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "other0"}, Mode: netlink.TUNTAP_MODE_TUN},
	} {
		// Not by h.Netlink, which makes a tuntap in the calling thread's namespace.
		if err := h.Do(func() error { return netlink.LinkAdd(l) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"tun01", "veth1", "other0", "lo"} {
		t.Run(name, func(t *testing.T) {
			before := describeLinks(t, h)
			err := tryOpen(h, tun.Config{Name: name, Queues: 1, Offload: true})
			if !errors.Is(err, os.ErrExist) {
				t.Fatalf("Open: %v, want %v", err, os.ErrExist)
			}
			for _, word := range []string{name, "choose another name", "ip link delete"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the message %q does not say %q", err, word)
				}
			}
			if diff := cmp.Diff(before, describeLinks(t, h)); diff != "" {
				t.Errorf("the links have changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestOpen_NameRefused(t *testing.T) {
	h := newHost(t)
	before := linkNames(t, h)
	for _, name := range []string{"sixteen-bytes-xx", strings.Repeat("x", 100), "a/b", "a b", ".", ".."} {
		t.Run(name, func(t *testing.T) {
			err := tryOpen(h, tun.Config{Name: name, Queues: 1})
			if err == nil || errors.Is(err, os.ErrExist) {
				t.Fatalf("Open: %v, want an error about the name", err)
			}
			if !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "name") {
				t.Errorf("the message %q does not say that the name %q is wrong", err, name)
			}
			if diff := cmp.Diff(before, linkNames(t, h)); diff != "" {
				t.Errorf("the links have changed (-before +after):\n%s", diff)
			}
		})
	}
}

// tryOpen opens a device that should not open, and closes it if it does.
func tryOpen(h *host, cfg tun.Config) error {
	return h.Do(func() error {
		d, err := h.tun.Open(cfg)
		if err == nil {
			err = errors.Join(errors.New("opened"), d.Close())
		}
		return err
	})
}

// describeLinks returns the attributes of all links, without counters.
func describeLinks(t *testing.T, h *host) (links []netlink.LinkAttrs) {
	t.Helper()
	list, err := h.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		attrs := *l.Attrs()
		attrs.Statistics = nil
		links = append(links, attrs)
	}
	return links
}

// There are as many queues as Config asks for, and the control descriptor is not one of
// them.
func TestOpen_Queues(t *testing.T) {
	h := newHost(t)
	for _, n := range []int{1, 2, 8, tun.MaxQueues} {
		d := open(t, h, tun.Config{Queues: n, Offload: true})
		if len(d.Queues()) != n {
			t.Errorf("%d queues, want %d", len(d.Queues()), n)
		}
		l, err := h.Netlink().LinkByName(d.Name())
		if err != nil {
			t.Fatal(err)
		}
		device, ok := l.(*netlink.Tuntap)
		if !ok {
			t.Fatalf("the link is a %s, want a tun", l.Type())
		}
		if device.Queues != n || device.DisabledQueues != 0 {
			t.Errorf("the kernel has %d queues and %d disabled ones, want %d and none", device.Queues, device.DisabledQueues, n)
		}
		if len(descriptors(t, d.Name())) != n {
			t.Errorf("%d descriptors, want %d", len(descriptors(t, d.Name())), n)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if hasLink(t, h, d.Name()) {
			t.Errorf("the device with %d queues is there after Close", n)
		}
	}
}

// The kernel spreads flows over the queues, and every packet arrives once.
func TestQueues_ShareTraffic(t *testing.T) {
	h := newHost(t)
	d := openUp(t, h, tun.Config{Queues: 8, Offload: true})
	var readings []*reading
	for _, q := range d.Queues() {
		readings = append(readings, startReading(q))
	}
	waitParked(t, len(readings))

	const flows, each = 64, 3
	want := map[string]int{}
	for range flows {
		c := listen(t, h, here)
		flow := localAddr(c).String()
		for range each {
			send(t, c, flow)
		}
		want[flow] = each
	}
	labtest.WaitFor(t, "all packets", func() bool {
		n := 0
		for _, r := range readings {
			n += len(r.packets)
		}
		return n >= flows*each
	})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	got, used := map[string]int{}, 0
	for _, r := range readings {
		if err := r.end(t); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read: %v, want %v", err, os.ErrClosed)
		}
		if len(r.packets) > 0 {
			used++
		}
		for len(r.packets) > 0 {
			got[udpPayload(r.next(t).Bytes)]++
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packets of each flow (-want +got):\n%s", diff)
	}
	if used < 2 {
		t.Errorf("%d of 8 queues carried %d flows", used, flows)
	}
}
