package show_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"
	"goipip/internal/tunnel"
)

var update = flag.Bool("update", false, "write the golden files")

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

var process = control.Process{PID: 1234, Version: "v1.2.3", Role: control.RoleBackground, Started: now.Add(-125 * time.Minute), Workers: 1}

// busy is a tunnel at work.
func busy() control.TunnelStatus {
	return control.TunnelStatus{
		Config: tunnel.Config{
			Name: "tun01", Local: netip.MustParseAddr("192.168.6.101"), Remote: netip.MustParseAddr("192.168.8.101"), Queues: 1,
		},
		Since: now.Add(-time.Hour), Index: 7, Up: true, MTU: 1480,
		Underlay: control.Underlay{
			Source: netip.MustParseAddr("192.168.6.101"), Device: "veth01", NextHop: netip.MustParseAddr("192.168.6.1"),
			LinkAddr: "02:00:00:00:00:01", Transmit: "packet", PathMTU: 1500, DeviceMTU: 1500,
		},
		TX: control.Traffic{Packets: 1234567, Bytes: 1 << 30, PacketRate: 98765, ByteRate: 1.5e8, Last: now, Drops: map[string]uint64{"too_big": 3, "congested": 12}},
		RX: control.Traffic{Packets: 10, Bytes: 1000, PacketRate: 1, ByteRate: 84, Last: now.Add(-3 * time.Second)},
	}
}

// with returns busy with changes.
func with(change func(*control.TunnelStatus)) control.TunnelStatus {
	t := busy()
	change(&t)
	return t
}

func TestOne(t *testing.T) {
	for name, c := range map[string]struct {
		view   show.View
		tunnel control.TunnelStatus
	}{
		"busy":   {show.View{}, busy()},
		"narrow": {show.View{Width: 60}, busy()},
		"colour": {show.View{Width: 80, Color: true}, busy()},
		"idle": {show.View{}, with(func(t *control.TunnelStatus) {
			t.TX, t.RX = control.Traffic{}, control.Traffic{Packets: 1, Bytes: 84, Last: now.Add(-26 * time.Hour)}
		})},
		"no-route": {show.View{Width: 80, Color: true}, with(func(t *control.TunnelStatus) {
			t.Trouble = "no route to the remote address: packets are dropped until there is one (ip route add)"
			t.Underlay = control.Underlay{Transmit: "raw", WhyRaw: "network is unreachable"}
			t.TX.Drops = map[string]uint64{"no_route": 5}
		})},
		"down": {show.View{Color: true}, with(func(t *control.TunnelStatus) { t.Up = false })},
		"away": {show.View{}, with(func(t *control.TunnelStatus) { t.Away = true })},
		"options": {show.View{}, with(func(t *control.TunnelStatus) {
			t.Config.Local = netip.Addr{}
			t.Config.TTL, t.Config.TOS, t.Config.Device, t.Config.Mark, t.Config.MTU = 64, 0x10, "veth01", 7, 1300
			t.Config.NoPMTUDisc, t.Config.RelayICMP, t.Config.NoOffload, t.Config.Queues = true, true, true, 4
			t.Config.Transmit = tunnel.TransmitRaw
			t.Underlay.Transmit, t.Underlay.LinkAddr = "raw", ""
			t.Underlay.PathMTU, t.Underlay.ReportedBy = 1400, "router"
			t.SoftErrors = 2
		})},
		"raw": {show.View{}, with(func(t *control.TunnelStatus) {
			t.Config.InheritTOS = true
			t.Underlay.Transmit, t.Underlay.LinkAddr, t.Underlay.WhyRaw = "raw", "", "nftables has chains (nft list ruleset)"
			t.Underlay.PathMTU = 1400
		})},
	} {
		t.Run(name, func(t *testing.T) {
			c.view.Now = now
			var b bytes.Buffer
			if err := c.view.One(&b, process, c.tunnel); err != nil {
				t.Fatal(err)
			}
			golden(t, "one-"+name, b.String())
			fits(t, c.view.Width, b.String())
		})
	}
}

func TestTable(t *testing.T) {
	tunnels := []control.TunnelStatus{
		busy(),
		with(func(t *control.TunnelStatus) { t.Config.Name, t.Up = "down", false }),
		with(func(t *control.TunnelStatus) {
			t.Config.Name, t.Trouble, t.TX.Drops, t.Underlay.PathMTU = "abcdefghijklmno", "no route", nil, 0
			t.Config.Local, t.Config.Remote, t.RX.Last = netip.MustParseAddr("255.255.255.250"), netip.MustParseAddr("255.255.255.251"), time.Time{}
		}),
		with(func(t *control.TunnelStatus) { t.Config.Name, t.Away, t.Config.Local = "far", true, netip.Addr{} }),
	}
	for name, view := range map[string]show.View{"wide": {}, "80": {Width: 80}, "120": {Width: 120}, "colour": {Width: 80, Color: true}} {
		t.Run(name, func(t *testing.T) {
			view.Now = now
			var b bytes.Buffer
			if err := view.Table(&b, tunnels); err != nil {
				t.Fatal(err)
			}
			golden(t, "table-"+name, b.String())
			fits(t, view.Width, b.String())
		})
	}
}

// fits fails the test if a line is longer than the screen.
func fits(t *testing.T, width int, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		for _, s := range []string{"\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"} {
			line = strings.ReplaceAll(line, s, "")
		}
		if n := len([]rune(line)); width > 0 && n > width {
			t.Errorf("%d columns, want at most %d: %s", n, width, line)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant\n%s\n(go test ./internal/show -update writes it)", name, got, want)
	}
}
