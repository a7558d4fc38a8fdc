package rawsock_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// T3: a TOS chooses the route, and nothing of the packets.
func TestT3_TOS(t *testing.T) {
	lab := labtest.New(t)
	left, right := addHost(t, lab, "left"), addHost(t, lab, "right")
	const remote = "192.168.1.129"
	must(t,
		lab.Veth(left, "eth0", right, "eth0"),
		left.AddAddr("eth0", "10.0.0.1/24"), right.AddAddr("eth0", "10.0.0.2/24"),
		right.AddAddr("lo", remote+"/32"),
	)
	const table, tos = 100, 0x10
	prefix, err := netlink.ParseIPNet(remote + "/32")
	must(t, err, left.Netlink().RouteAdd(&netlink.Route{Dst: prefix, Gw: []byte{10, 0, 0, 2}, Table: table}))
	rule := netlink.NewRule()
	rule.Tos, rule.Table, rule.Priority, rule.Family = tos, table, 1000, netlink.FAMILY_V4
	must(t, left.Netlink().RuleAdd(rule))

	without := config{Local: leftAddr, Remote: netip.MustParseAddr(remote)}
	with := without
	with.TOS = tos
	g := startReceiving(newReceiver(t, right, reverse(without)))

	s := newSender(t, left, without)
	if s.send(t, "no way"); len(s.refusals) != 1 || s.refusals[0].Why != stats.NoRoute {
		t.Errorf("without TOS: %+v, want no route", s.refusals)
	}
	if newReceiver(t, left, without).Connect() == nil {
		t.Error("without TOS: connected")
	}
	must(t, newReceiver(t, left, with).Connect())

	s = newSender(t, left, with)
	for _, hdrTOS := range []uint8{0, 0xb8, 0x03, 0xff} {
		hdr := outer(with, 4)
		hdr.SetTOS(hdrTOS)
		hdr.UpdateChecksum()
		want := append(bytes.Clone(hdr), "data"...)
		s.Add(hdr, []byte("data"))
		must(t, s.Flush())
		got := g.next(t)
		for _, p := range []packet.IPv4{want, got} {
			p.SetID(0) // which the kernel may choose
			p.UpdateChecksum()
		}
		if !bytes.Equal(got, want) {
			t.Errorf("received % x, want % x", []byte(got), want)
		}
	}
	if len(s.refusals) > 0 {
		t.Errorf("refused: %+v", s.refusals)
	}
}
