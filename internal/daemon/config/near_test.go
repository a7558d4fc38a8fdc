package config

import "testing"

func TestNear(t *testing.T) {
	for name, want := range map[string]string{
		"lokal": "local", "loacl": "local", "locals": "local", "remot": "remote", "addresse": "address", "route": "routes",
		"FWMark": "fwmark", "fw_mark": "fwmark", "nopmtu-disc": "nopmtudisc", "t": "", "xt": "tx", "tto": "ttl", "": "", "device": "", "colour": "",
		"a-key-that-is-longer-than-any-other-is": "",
	} {
		if got := near(name, Keys()); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
