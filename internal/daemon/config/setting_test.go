package config_test

import (
	"testing"

	"goipip/internal/daemon/config"
	"goipip/internal/tunnel"
)

// Without an address, what listens is for this host alone.
func TestParseListen(t *testing.T) {
	for text, want := range map[string]string{ // empty for an error
		":9747": "127.0.0.1:9747", "localhost:9747": "127.0.0.1:9747", "127.0.0.1:0": "127.0.0.1:0", "192.0.2.1:9747": "192.0.2.1:9747",
		"0.0.0.0:9747": "0.0.0.0:9747", "[::1]:9747": "[::1]:9747", "[::]:9747": "[::]:9747",
		"": "", "9747": "", "192.0.2.1": "", "192.0.2.1:": "", ":": "", "::1:9747": "", ":http": "", ":65536": "", ":-1": "", "eth0:9747": "", "a.example:9747": "", " :9747": "",
	} {
		if got, err := config.ParseListen(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestSettings reads each setting and shows it, in the notation that it reads.
func TestSettings(t *testing.T) {
	for name, texts := range map[string]map[string]string{ // what is read: what is shown
		"local":   {"192.0.2.1": "192.0.2.1", "any": "any", "0.0.0.0": "any", "eth0": "eth0", "br-lan.7": "br-lan.7"},
		"remote":  {"192.0.2.2": "192.0.2.2", "gw.example.net": "gw.example.net", "gw_1.example.net.": "gw_1.example.net.", "gw": "gw"},
		"address": {"10.0.0.1": "10.0.0.1/32", "10.0.0.1/24": "10.0.0.1/24"},
		"peer":    {"10.0.0.2": "10.0.0.2"},
		"ttl":     {"64": "64", "0x40": "64", "inherit": "inherit", "0": "inherit"},
		"tos":     {"10": "10", "0x10": "10", "b8": "b8", "0": "00", "inherit": "inherit", "inherit/10": "inherit"},
		"fwmark":  {"7": "0x7", "0xffffffff": "0xffffffff", "0": ""},
		"icmp":    {"linux": "linux", "rfc2003": "rfc2003"},
		"offload": {"auto": "auto", "off": "off"},
		"tx":      {"auto": "auto", "raw": "raw", "packet": "packet"},

		"resolve-interval": {"30s": "30s", "1m30s": "1m30s", "24h": "24h"},
		"keepalive":        {"10s": "10s", "1h": "1h", "10m0s": "10m", "100ms": "100ms", "1.5s": "1.5s"},

		"fast-path": {"off": "off", "auto": "auto", "on": "on"},
		"clamp-mss": {"off": "off", "auto": "auto", "536": "536", "0x550": "1360", "65475": "65475"},
	} {
		s := config.Settings[name]
		for text, want := range texts {
			var c tunnel.Config
			if err := s.Set(&c, text); err != nil || s.Text(&c) != want {
				t.Errorf("%s %s: shown as %q, want %q; %v", name, text, s.Text(&c), want, err)
			}
			if err := s.Set(&c, "?"); err == nil || s.Text(&c) != want {
				t.Errorf("%s ?: %v, and the setting is %q", name, err, s.Text(&c))
			}
		}
	}
	if len(config.Settings) != 14 {
		t.Errorf("%d settings", len(config.Settings))
	}
}

// What is neither an address nor a name is refused, and above all a mistyped address.
func TestSettings_Names(t *testing.T) {
	for name, texts := range map[string][]string{
		"local":            {"10.0.0.300", "10.0.0", "10.0.0.1/24", "-eth0", "eth 0", "averyveryverylongname", "1eth"},
		"remote":           {"10.0.0.300", "10.0.0.1.", "10.0.0.1/24", "gw.example.7", "-gw", "gw..net", "gw example", "gwö", "."},
		"resolve-interval": {"30", "0", "0s", "500ms", "25h", "-1s"},
		"keepalive":        {"10", "0s", "50ms", "2h", "-1s", "often"},
	} {
		for _, text := range texts {
			var c tunnel.Config
			if err := config.Settings[name].Set(&c, text); err == nil {
				t.Errorf("%s %s: no error", name, text)
			}
		}
	}
}
