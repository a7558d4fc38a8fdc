package config_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"goipip/internal/daemon/config"
	"goipip/internal/tunnel"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var comparable = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestEveryKey(t *testing.T) {
	const path = "testdata/every.toml"
	got, err := config.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := &config.File{
		LogLevel: "debug", LogFormat: "json", Metrics: "127.0.0.1:9747",
		Tunnels: []config.Tunnel{{
			Config: tunnel.Config{
				Name: "tun01", Local: addr("10.90.6.238"), Remote: addr("192.168.1.129"),
				Address: prefix("172.66.1.101/32"), Peer: addr("172.66.2.101"),
				MTU: 1400, TTL: 64, TOS: 0x10, InheritTOS: true, Device: "eth0", Mark: 7, RelayICMP: true,
				Transmit: tunnel.TransmitPacket, Fast: tunnel.FastAuto, ClampMSS: tunnel.ClampAuto, Queues: 3, NoOffload: true,
			},
			Addresses: []netip.Prefix{prefix("10.0.0.1/24"), prefix("10.0.1.1/32")},
			Routes:    []config.Route{{To: prefix("198.51.100.0/24"), Metric: 100, Table: 7}, {To: prefix("0.0.0.0/0")}},
			File:      path, Line: 6,
		}, {
			Config: tunnel.Config{
				Name: "eth0.5", Local: addr("192.0.2.1"), Remote: addr("192.0.2.2"), TOS: 0x10, NoPMTUDisc: true, Mark: 7,
				Queues: tunnel.DefaultQueues(),
			},
			File: path, Line: 30,
		}, {
			Config: tunnel.Config{
				Name: "tun03", Local: addr("192.0.2.1"), Remote: addr("192.0.2.3"), TTL: 64, TOS: 0xb8,
				Transmit: tunnel.TransmitRaw, Fast: tunnel.FastOn, ClampMSS: 1360, Queues: tunnel.DefaultQueues(),
			},
			Routes: []config.Route{{To: prefix("203.0.113.7/32")}, {To: prefix("203.0.113.8/32")}},
			File:   path, Line: 32,
		}},
	}
	if diff := cmp.Diff(want, got, comparable); diff != "" {
		t.Error(diff)
	}

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range slices.Concat(config.Keys(), config.ProcessKeys()) {
		if !strings.Contains(string(text), key+" ") {
			t.Errorf("%s lacks the key %s", path, key)
		}
	}
}

func TestDirectory(t *testing.T) {
	inFiles(t, map[string]string{
		"b.toml": pair("tun02", "192.0.2.2"), "a.toml": pair("tun01", "192.0.2.1"), "c.toml": "log-level = 'warn'",
		".b.toml": "not TOML", "notes.txt": "not TOML", "B.toml": pair("tun03", "192.0.2.3"),
	})
	if err := os.Mkdir("d.toml", 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := config.Read(".")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, tunnel := range f.Tunnels {
		got = append(got, tunnel.File+" "+tunnel.Config.Name)
	}
	if want := []string{"B.toml tun03", "a.toml tun01", "b.toml tun02"}; !slices.Equal(got, want) || f.LogLevel != "warn" {
		t.Errorf("got %q, log-level %s, want %q, warn", got, f.LogLevel, want)
	}
}

func TestUnreadable(t *testing.T) {
	inFiles(t, map[string]string{"a.toml": "[tunnel.tun01]", "c.toml": pair("tun02", "192.0.2.2")})
	if err := os.Symlink("nowhere", "b.toml"); err != nil {
		t.Fatal(err)
	}
	_, err := config.Read(".")
	const want = `open b.toml: no such file or directory
a.toml:1:9: tunnel.tun01.remote: is missing: give the IPv4 address of this tunnel's remote end`
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, err := config.Read("no.toml"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no.toml") {
		t.Errorf("no such file: %v", err)
	}
}

func TestErrorIsTyped(t *testing.T) {
	inFiles(t, map[string]string{"goipip.toml": pair("tun01", "192.0.2.1") + "mtu = 67"})
	_, err := config.Read("goipip.toml")
	want := config.Error{File: "goipip.toml", Line: 4, Column: 7, Key: "tunnel.tun01.mtu", Problem: "67: must be 68 to 65515"}
	if got := new(config.Error); !errors.As(err, &got) || *got != want {
		t.Errorf("got %#v, want %#v", err, want)
	}
}

// inFiles makes files in a new directory, which becomes the working directory.
func inFiles(t *testing.T, files map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// pair is a tunnel to remote, in three lines.
func pair(name, remote string) string {
	return "[tunnel." + name + "]\nlocal = '10.0.0.1'\nremote = '" + remote + "'\n"
}
