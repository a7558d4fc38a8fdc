package tun_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

// To other programs the link looks like the kernel's own ipip device.
func TestO1_LooksLikeIPIP(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			h := newHost(t)
			d := openUp(t, h, tun.Config{Name: "tun01", Queues: 2, Offload: offload})
			l, err := h.Netlink().LinkByName("tun01")
			if err != nil {
				t.Fatal(err)
			}
			attrs := l.Attrs()
			type shown struct {
				Type      string
				Flags     uint32
				MTU, QLen int
			}
			want := shown{"ipip", unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING | unix.IFF_POINTOPOINT | unix.IFF_NOARP, 1480, 4096}
			got := shown{attrs.EncapType, attrs.RawFlags, attrs.MTU, attrs.TxQLen}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("link (-want +got):\n%s", diff)
			}
			if got := linkAttr(t, h, d, unix.IFLA_BROADCAST); netipSlice(got) != link.Remote {
				t.Errorf("link-layer peer % x, want %v", got, link.Remote)
			}
		})
	}
}

func netipSlice(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// linkAttr returns an attribute of the link (rtnetlink(7)).
func linkAttr(t *testing.T, h *host, d *tun.Device, attr uint16) (value []byte) {
	t.Helper()
	err := h.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(d.Index())
		req.AddData(msg)
		answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return err
		}
		attrs, err := nl.ParseRouteAttrAsMap(answers[0][unix.SizeofIfInfomsg:])
		value = attrs[attr].Value
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// The words of ip(8) are those of the kernel's ipip device.
func TestO1_ShownByIP(t *testing.T) {
	labtest.Need(t, "ip")
	h := newHost(t)
	openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
	out, err := h.Output("ip", "address", "show", "dev", "tun01")
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{
		"tun01: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1480 qdisc noqueue ",
		" qlen 4096\n",
		"link/ipip 0.0.0.0 peer 192.168.1.129\n",
		"inet 172.66.1.101 peer 172.66.2.101/32 ",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("ip(8) does not say %q:\n%s", words, out)
		}
	}
}

// Until Setup, the link is down and without addresses.
func TestOpen_DownWithoutAddress(t *testing.T) {
	h := newHost(t)
	open(t, h, tun.Config{Name: "tun01", Queues: 1})
	l, err := h.Netlink().LinkByName("tun01")
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Error("the link is up")
	}
	if a := addresses(t, h, "tun01", netlink.FAMILY_ALL); len(a) != 0 {
		t.Errorf("the link has addresses: %v", a)
	}
}

func addresses(t *testing.T, h *host, name string, family int) (list []string) {
	t.Helper()
	l, err := h.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := h.Netlink().AddrList(l, family)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		s := a.IPNet.String()
		if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
			s += " peer " + a.Peer.String()
		}
		list = append(list, s)
	}
	return list
}

func TestSetup_Address(t *testing.T) {
	h := newHost(t)
	tests := []struct {
		name  string
		local string
		peer  string
		want  []string
		route string // an address that the kernel then reaches through the link
	}{
		{"none", "", "", nil, ""},
		{"subnet", "10.1.2.3/24", "", []string{"10.1.2.3/24"}, "10.1.2.99"},
		{"point to point", "172.66.1.101/32", "172.66.2.101", []string{"172.66.1.101/32 peer 172.66.2.101/32"}, "172.66.2.101"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
			l := tun.Link{MTU: 1480, Remote: link.Remote}
			if tt.local != "" {
				l.Address = netip.MustParsePrefix(tt.local)
			}
			if tt.peer != "" {
				l.Peer = netip.MustParseAddr(tt.peer)
			}
			setup(t, d, l)
			if diff := cmp.Diff(tt.want, addresses(t, h, "tun01", netlink.FAMILY_V4)); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			if tt.route != "" {
				routes, err := h.Netlink().RouteGet(netip.MustParseAddr(tt.route).AsSlice())
				if err != nil || len(routes) != 1 || routes[0].LinkIndex != d.Index() {
					t.Errorf("routes to %s: %v, %v, want one by link %d", tt.route, routes, err, d.Index())
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The ends of the MTU's range, and values outside it.
func TestSetup_MTU(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	for mtu, ok := range map[int]bool{67: false, 68: true, 576: true, 65515: true, 65536: false} {
		err := d.Setup(tun.Link{MTU: mtu, Remote: link.Remote})
		if (err == nil) != ok {
			t.Errorf("mtu %d: %v, want ok = %v", mtu, err, ok)
		}
		if err != nil {
			if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "set up tun01: mtu: ") {
				t.Errorf("mtu %d: %q does not say what was attempted", mtu, err)
			}
			continue
		}
		l, err := h.Netlink().LinkByName("tun01")
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Attrs().MTU; got != mtu {
			t.Errorf("mtu %d became %d", mtu, got)
		}
	}
}

func TestSetup_Deleted(t *testing.T) {
	h := newHost(t)
	d := open(t, h, tun.Config{Name: "tun01", Queues: 1})
	if err := h.DeleteLink("tun01"); err != nil {
		t.Fatal(err)
	}
	err := d.Setup(link)
	if err == nil || !strings.Contains(err.Error(), "set up tun01: ") {
		t.Errorf("Setup: %v, want an error that names the link", err)
	}
}

// Where the kernel gives each link an IPv6 address and sends IPv6 packets by itself, it does
// neither on this link.
func TestG6_NoIPv6(t *testing.T) {
	h := newHost(t)
	for conf, value := range map[string]string{
		"disable_ipv6": "0",
		// The usual mode makes an address of the hardware's, which a TUN of type
		// 768 does not have (__ipv6_isatap_ifid in net/ipv6/addrconf.c).
		"addr_gen_mode":             "3", // IN6_ADDR_GEN_MODE_RANDOM
		"router_solicitation_delay": "0",
	} {
		if err := h.Sysctl("net.ipv6.conf.default."+conf, value); errors.Is(err, os.ErrNotExist) {
			t.Skip("this kernel has no IPv6")
		} else if err != nil {
			t.Fatal(err)
		}
	}
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 1, Offload: true})
	r := startReading(d.Queues()[0])

	// A plain TUN shows what the kernel does otherwise, and when.
	noisy := openPlain(t, h, "plain")
	if err := h.SetUp("plain"); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "an IPv6 address on a plain TUN", func() bool {
		return len(addresses(t, h, "plain", netlink.FAMILY_V6)) > 0
	})
	buf := make([]byte, 1<<16)
	for n := 0; !isRouterSolicitation(buf[:n]); {
		var err error
		if n, err = noisy.Read(buf); err != nil {
			t.Fatalf("waiting for a router solicitation: %v", err)
		}
	}

	if a := addresses(t, h, "tun01", netlink.FAMILY_V6); len(a) != 0 {
		t.Errorf("the link has IPv6 addresses: %v", a)
	}
	send(t, listen(t, h, here), "first")
	if p := packet.IPv4(r.next(t).Bytes); udpPayload(p) != "first" {
		t.Errorf("the kernel sent by itself: % x", []byte(p))
	}
}

// openPlain opens a TUN as any program does. Its Read fails at the deadline.
func openPlain(t *testing.T, h *host, name string) *os.File {
	t.Helper()
	var f *os.File
	err := h.Do(func() error {
		w, err := water.New(water.Config{
			DeviceType:             water.TUN,
			PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
		})
		if err == nil {
			f = w.ReadWriteCloser.(*os.File)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return f
}

func isRouterSolicitation(p []byte) bool {
	const (
		hdrLen = 40  // RFC 8200 §3
		typ    = 133 // RFC 4861 §4.1
	)
	return len(p) > hdrLen && p[0]>>4 == 6 && p[6] == unix.IPPROTO_ICMPV6 && p[hdrLen] == typ
}
