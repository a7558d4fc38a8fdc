package netlab_test

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

func TestRoutesAndAddresses(t *testing.T) {
	lab := labtest.New(t)
	a, b := newHost(t, lab, "a"), newHost(t, lab, "b")
	if err := errors.Join(
		lab.Veth(a, "left", b, "right"),
		a.Sysctl("net.ipv6.conf.left.disable_ipv6", "0"),
		a.AddAddr("left", "fd00::1/64"),
		a.AddPeer("left", "10.0.0.1", "10.0.0.2"),
		a.AddRoute("10.1.0.0/16", "left"),
		a.AddRoute("default", "10.0.0.2"),
		a.SetMTU("left", 1400),
		b.SetDown("right"),
	); err != nil {
		t.Fatal(err)
	}
	link, err := a.Netlink().LinkByName("left")
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().MTU != 1400 {
		t.Errorf("mtu %d, want 1400", link.Attrs().MTU)
	}
	if err := b.SetUp("right"); err != nil {
		t.Fatal(err)
	}
	for dst, gateway := range map[string]string{"10.0.0.2": "<nil>", "10.1.2.3": "<nil>", "1.2.3.4": "10.0.0.2"} {
		routes, err := a.Netlink().RouteGet(net.ParseIP(dst))
		if err != nil {
			t.Errorf("route to %s: %v", dst, err)
		} else if got := fmt.Sprint(routes[0].Gw); got != gateway || !routes[0].Src.Equal(net.IPv4(10, 0, 0, 1)) {
			t.Errorf("route to %s: via %s from %v, want via %s from 10.0.0.1", dst, got, routes[0].Src, gateway)
		}
	}

	if err := a.DeleteLink("left"); err != nil {
		t.Fatal(err)
	}
	for dev, host := range map[string]*netlab.Host{"left": a, "right": b} {
		if err := host.SetUp(dev); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("SetUp of deleted %s: %v, want not found", dev, err)
		}
	}
}
