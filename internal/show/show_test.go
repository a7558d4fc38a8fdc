package show_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
	"goipip/internal/show"
	"goipip/internal/stats"
	"goipip/internal/tunnel"
	"goipip/tun"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write the golden files")

// now is when all tests look.
var now = time.Date(2026, 11, 26, 17, 41, 58, 0, time.UTC)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// idle is a tunnel that nothing has passed.
func idle(name string) control.TunnelStatus {
	return control.TunnelStatus{
		Name: name,
		Config: tunnel.Config{
			Name: name, Local: addr("10.90.6.238"), Remote: addr("192.168.1.129"),
			Address: netip.MustParsePrefix("172.66.1.101/32"), Peer: addr("172.66.2.101"), Queues: 1,
		},
		Since: now.Add(-2*time.Hour - 5*time.Minute), Index: 7, Up: true, MTU: 1480,
		Underlay: control.Underlay{
			Source: addr("10.90.6.238"), Device: "eth0", NextHop: addr("10.90.6.1"), LinkAddr: "02:00:00:00:00:01",
			Transmit: "packet", PathMTU: 1500, DeviceMTU: 1500,
		},
		Link: map[string]uint64{"tx_errors": 0},
	}
}

// busy is a tunnel with traffic, drops, and an ICMP error.
func busy(name string) control.TunnelStatus {
	t := idle(name)
	t.Underlay.PathMTU, t.Underlay.ReportedBy = 1400, "router"
	t.SoftErrors = 2
	t.Config.Fast = tunnel.FastAuto
	t.FastPath = &control.FastPath{Used: true, Sent: 1234000, Received: 654000}
	t.TX = control.Traffic{
		Packets: 1234567, Bytes: 1300000000, PacketRate: 84012, ByteRate: 117625000, Last: now.Add(-time.Second),
		Drops: map[string]uint64{"too_big": 12, "no_route": 1234, "malformed": 1},
	}
	t.RX = control.Traffic{
		Packets: 654321, Bytes: 34000000, PacketRate: 42000, ByteRate: 2184000, Last: now.Add(-3 * time.Second),
		Drops: map[string]uint64{"rcvbuf_full": 3, "reason_of_tomorrow": 4, "bad_ecn": 0},
	}
	return t
}

func noRoute(name string) control.TunnelStatus {
	t := idle(name)
	t.Trouble = "no route to the remote address: packets are dropped until there is one (ip route add)"
	t.Underlay = control.Underlay{Source: addr("10.90.6.238"), Transmit: "raw", WhyRaw: "network is unreachable"}
	t.TX.Drops = map[string]uint64{"no_route": 1500}
	t.RX = control.Traffic{Packets: 5, Bytes: 420, Last: now.Add(-50 * time.Minute)}
	return t
}

func linkDown(name string) control.TunnelStatus {
	t := idle(name)
	t.Up = false
	t.RX.Drops = map[string]uint64{"link_down": 17}
	return t
}

func away(name string) control.TunnelStatus {
	t := idle(name)
	t.Away = true
	t.TX = control.Traffic{Packets: 10, Bytes: 840, Last: now.Add(-26 * time.Hour)}
	t.RX = control.Traffic{Packets: 10, Bytes: 840, Last: now.Add(-26 * time.Hour)}
	return t
}

// everything has each option that a tunnel can have.
func everything(name string) control.TunnelStatus {
	t := busy(name)
	prefix := netip.MustParsePrefix
	t.Config = tunnel.Config{
		Name: name, Remote: addr("192.168.101.129"), RemoteName: "gw.example.net", ResolveInterval: tunnel.Duration(30 * time.Second),
		Keepalive: tunnel.Duration(10 * time.Second), KeepaliveRetries: 5,
		Address: prefix("172.66.1.101/24"), Addresses: []netip.Prefix{prefix("10.0.0.1/24"), prefix("10.0.1.1/32")},
		Routes: []tun.Route{{To: prefix("198.51.100.0/24"), Metric: 100, Table: 7}, {To: prefix("0.0.0.0/0")}},
		MTU:    1400, TTL: 64, TOS: 0x10, InheritTOS: true, NoPMTUDisc: true, Device: "eth0", Mark: 7, RelayICMP: true,
		Transmit: tunnel.TransmitRaw, Fast: tunnel.FastOn, ClampMSS: tunnel.ClampAuto, Queues: 4, NoOffload: true, Down: true, AnyProtocol: true,
	}
	t.MaxMSS = 1340
	t.FastPath = &control.FastPath{WhyNot: "the link is promiscuous (tcpdump)", Sent: 1200000, Received: 650000}
	t.Underlay.Transmit = "raw"
	t.Keepalive = &control.Keepalive{Carrier: true}
	return t
}

// silent is a tunnel whose remote end does not answer.
func silent(name string) control.TunnelStatus {
	t := idle(name)
	t.Config.LocalDevice = "eth0"
	t.Trouble = "the remote end does not answer: the link has no carrier, and takes no packets"
	t.Keepalive = &control.Keepalive{SilentSince: now.Add(-5 * time.Minute)}
	return t
}

// waiting is a tunnel whose names have no addresses yet.
func waiting(name string) control.TunnelStatus {
	return control.TunnelStatus{
		Config:  tunnel.Config{Name: name, LocalDevice: "eth0", RemoteName: "gw.example.net", Queues: 1},
		Trouble: "waits for the address of gw.example.net: no such name (NXDOMAIN)",
		Since:   now.Add(-time.Minute),
	}
}

// one is a process with these tunnels.
func one(tunnels ...control.TunnelStatus) []control.Status {
	return []control.Status{{
		Process: control.Process{
			PID: 4242, Version: "v1.4.0", Role: control.RoleRun, Config: "/etc/goipip/goipip.toml",
			Started: now.Add(-75 * time.Hour), Workers: 2,
		},
		Tunnels: tunnels,
	}}
}

// several is tunnels of two processes, one in each state.
func several() []control.Status {
	all := one(busy("tun10"), idle("tun2"), noRoute("tun3"), linkDown("backup"))
	all = append(all, one(away("tun4"))...)
	all[1].Process.PID, all[1].Process.Role, all[1].Process.Config = 99, control.RoleBackground, ""
	return all
}

// longest is tunnels whose every cell is as wide as it gets.
func longest() []control.Status {
	t := noRoute("fifteen-letters")
	t.Config.Local, t.Config.Remote = addr("192.168.101.129"), addr("192.168.102.238")
	t.Underlay.PathMTU = 1500
	t.TX = busy("").TX
	t.RX = control.Traffic{Packets: 1 << 60, Bytes: 1 << 62, PacketRate: 1 << 30, ByteRate: 1 << 40, Last: now.Add(-40 * time.Minute)}
	t.TX.Drops = map[string]uint64{"no_route": 123456789}
	return one(t, busy("tun0"))
}

// crowd is n tunnels, of which each tenth has no route.
func crowd(n int) []control.Status {
	var list []control.TunnelStatus
	for i := range n {
		name := fmt.Sprintf("tun%d", i)
		if i%10 == 9 {
			list = append(list, noRoute(name))
			continue
		}
		list = append(list, idle(name))
	}
	return one(list...)
}

func TestGolden(t *testing.T) {
	v := show.View{Now: now, Width: 80}
	with := func(f func(*show.View)) show.View {
		w := v
		f(&w)
		return w
	}
	coloured := with(func(v *show.View) { v.Colour = true })
	wide := with(func(v *show.View) { v.Width = 0 })
	foreground := one(idle("tun01"))
	foreground[0].Process = control.Process{PID: 1, Version: "v1.4.0", Role: control.RoleForeground, Started: now, Workers: 1}
	hostile := idle("tun\x1b[31m")
	hostile.Underlay.Device = "eth\r0"
	for name, c := range map[string]struct {
		view     show.View
		statuses []control.Status
		name     string
	}{
		"busy":        {v, one(busy("tun01")), ""},
		"busy-colour": {coloured, one(busy("tun01")), ""},
		"busy-wide":   {wide, one(busy("tun01")), ""},
		"busy-40":     {with(func(v *show.View) { v.Width = 40 }), one(busy("tun01")), ""},
		"busy-24-lines": {with(func(v *show.View) {
			v.Width, v.Height, v.Header = 80, 24, "17:41:58, every second; q ends"
		}), one(busy("tun01")), ""},
		"idle":            {v, foreground, "tun01"},
		"no-route":        {v, several(), "tun3"},
		"no-route-colour": {coloured, several(), "tun3"},
		"link-down":       {v, several(), "backup"},
		"away":            {v, several(), "tun4"},
		"everything":      {v, one(everything("tun01")), ""},
		"silent":          {v, one(silent("tun01")), ""},
		"waiting":         {v, one(waiting("tun01")), ""},
		"names":           {v, one(waiting("tun01"), silent("tun02")), ""},
		"same-name":       {v, append(one(idle("tun01")), one(away("tun01"), idle("tun02"))...), "tun01"},
		"control":         {v, one(hostile), ""},
		"many":            {v, several(), ""},
		"many-colour":     {coloured, several(), ""},
		"many-wide":       {wide, several(), ""},
		"many-40":         {with(func(v *show.View) { v.Width = 40 }), several(), ""},
		"long-names":      {v, longest(), ""},
		"crowd": {with(func(v *show.View) {
			v.Width, v.Height, v.Header = 80, 24, "17:41:58, every second; q ends"
		}), crowd(100), ""},
	} {
		t.Run(name, func(t *testing.T) {
			lines, err := c.view.Lines(c.statuses, c.name)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, strings.Join(lines, "\n")+"\n")
			fits(t, c.view, lines)
		})
	}
}

// fits checks that lines keep to the view's size.
func fits(t *testing.T, v show.View, lines []string) {
	t.Helper()
	if v.Height > 0 && len(lines) > v.Height {
		t.Errorf("%d lines, of %d at most", len(lines), v.Height)
	}
	for _, l := range lines {
		l = regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(l, "")
		if w := utf8.RuneCountInString(l); v.Width > 0 && w > v.Width {
			t.Errorf("%d columns: %q", w, l)
		}
		if strings.HasSuffix(l, " ") || strings.ContainsAny(l, "\x1b\r\n\t") {
			t.Errorf("bad characters in %q", l)
		}
	}
}

// golden compares got with the file testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	labtest.Golden(t, filepath.Join("testdata", name+".golden"), got, *update, "./internal/show -update")
}

// TestEverySize draws in windows of all sizes, down to none.
func TestEverySize(t *testing.T) {
	for _, statuses := range [][]control.Status{one(everything("tun01")), several(), longest(), crowd(30)} {
		for w := 1; w < 120; w++ {
			for _, h := range []int{1, 2, 3, 4, 5, 7, 12, 24, 100} {
				v := show.View{Now: now, Width: w, Height: h, Colour: w%2 == 0, Header: "a header"}
				lines, err := v.Lines(statuses, "")
				if err != nil {
					t.Fatal(err)
				}
				fits(t, v, lines)
			}
		}
	}
}

// TestTableShowsTrouble draws a table with too few lines: tunnels that work give way.
func TestTableShowsTrouble(t *testing.T) {
	lines, err := show.View{Now: now, Width: 80, Height: 16}.Lines(crowd(100), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(strings.Join(lines, "\n"), "no path "); got != 10 {
		t.Errorf("%d of 10 tunnels without a route in\n%s", got, strings.Join(lines, "\n"))
	}
}

// TestColourChangesNoText compares text with and without colours.
func TestColourChangesNoText(t *testing.T) {
	for _, statuses := range [][]control.Status{one(everything("tun01")), several()} {
		v := show.View{Now: now, Width: 80}
		want, _ := v.Lines(statuses, "")
		v.Colour = true
		got, _ := v.Lines(statuses, "")
		for i := range got {
			got[i] = strings.TrimRight(regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(got[i], ""), " ")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// TestEveryReason finds each reason on the screen, with what it means.
func TestEveryReason(t *testing.T) {
	s := idle("tun01")
	s.TX.Drops = make(map[string]uint64)
	for r := range stats.NumReasons {
		if r.Dropped() {
			s.TX.Drops[r.String()] = uint64(r)
		}
	}
	lines, err := show.View{Now: now}.Lines(one(s), "")
	if err != nil {
		t.Fatal(err)
	}
	for r := range stats.NumReasons {
		line := regexp.MustCompile(fmt.Sprintf(`^    %v +%d  %s$`, r, r, regexp.QuoteMeta(r.Help())))
		if r.Dropped() && !slices.ContainsFunc(lines, line.MatchString) {
			t.Errorf("no line for %v in\n%s", r, strings.Join(lines, "\n"))
		}
	}
}

func TestSelect(t *testing.T) {
	none, _ := show.Select(nil, "")
	if len(none) != 0 {
		t.Errorf("of nothing: %v", none)
	}
	for name, want := range map[string]map[int][]string{
		"":     {4242: {"tun10", "tun2", "tun3", "backup"}, 99: {"tun4"}},
		"tun4": {99: {"tun4"}},
		"tun2": {4242: {"tun2"}},
	} {
		got := make(map[int][]string)
		all := several()
		selected, err := show.Select(all, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range selected {
			for _, tunnel := range s.Tunnels {
				got[s.Process.PID] = append(got[s.Process.PID], tunnel.Config.Name)
			}
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
		if len(all[0].Tunnels) != 4 {
			t.Error("Select changed what it got")
		}
	}
	for _, c := range []struct {
		statuses []control.Status
		want     string
	}{
		{several(), `no tunnel "tun1": there are backup, tun2, tun3, tun4, tun10`},
		{nil, `no tunnel "tun1": there are none`},
		{one(), `no tunnel "tun1": there are none`},
		{crowd(1), `no tunnel "tun1": there are tun0`},
		{append(crowd(1), crowd(1)...), `no tunnel "tun1": there are tun0`},
	} {
		if _, err := show.Select(c.statuses, "tun1"); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	const want = `no tunnel "x": there are tun0, tun1, tun2, tun3, tun4, tun5, tun6, tun7, tun8, tun9 and 90 more`
	if _, err := show.Select(crowd(100), "x"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNothingToShow(t *testing.T) {
	for _, statuses := range [][]control.Status{nil, one()} {
		if lines, err := (show.View{Now: now, Header: "a header"}).Lines(statuses, ""); err != nil || lines != nil {
			t.Errorf("%q, %v", lines, err)
		}
	}
}

func TestProblem(t *testing.T) {
	v := show.View{Now: now, Width: 30, Colour: true, Header: "a header"}
	want := []string{"a header", "", "\x1b[1;31mcannot ask goipip\x1b[0m", "\x1b[1;31mprocess 4242: connection\x1b[0m", "\x1b[1;31mrefused\x1b[0m"}
	if diff := cmp.Diff(want, v.Problem("cannot ask goipip\nprocess 4242: connection refused\n")); diff != "" {
		t.Error(diff)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := show.JSON(&b, several(), "tun4", false); err != nil {
		t.Fatal(err)
	}
	golden(t, "json", b.String())

	for name, want := range map[string][]control.Status{"": several(), "tun4": several()[1:]} {
		for _, oneLine := range []bool{true, false} {
			b.Reset()
			if err := show.JSON(&b, several(), name, oneLine); err != nil {
				t.Fatal(err)
			}
			if oneLine && (strings.Count(b.String(), "\n") != 1 || !strings.HasSuffix(b.String(), "\n")) {
				t.Errorf("not one line: %q", b.String())
			}
			var got []control.Status
			if err := json.Unmarshal(b.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Error(diff)
			}
		}
	}

	b.Reset()
	if err := show.JSON(&b, nil, "", false); err != nil || b.String() != "[]\n" {
		t.Errorf("without tunnels: %q, %v", b.String(), err)
	}
	b.Reset()
	if err := show.JSON(&b, several(), "tun1", false); err == nil || b.Len() > 0 {
		t.Errorf("an unknown name: %q, %v", b.String(), err)
	}
}
