package config_test

import (
	"testing"

	"goipip/internal/daemon/config"
)

const notInner = "the other end drops packets from there: give an address outside of 0/8, 127/8, 224/4 and 240/4"

const clampMSS = "must be off, auto, or 536 (every host takes that) to 65475 (no packet holds more)"

// TestErrors has one case for each kind of error. Those of a tunnel stand in the
// fourth line, after tun01's header and ends.
func TestErrors(t *testing.T) {
	const at = "goipip.toml:4:"
	for _, c := range []struct{ line, want string }{
		// Keys.
		{`lokal = "192.0.2.1"`, at + `1: tunnel.tun01.lokal: unknown key: did you mean "local"?`},
		{`MTU = 1400`, at + `1: tunnel.tun01.MTU: unknown key: did you mean "mtu"?`},
		{`noptmudisc = true`, at + `1: tunnel.tun01.noptmudisc: unknown key: did you mean "nopmtudisc"?`},
		{`name = "tun02"`, at + `1: tunnel.tun01.name: unknown key: a tunnel's name stands in the header of its table, [tunnel.NAME]`},
		{`colour.front = 1`, at + `1: tunnel.tun01.colour: unknown key: the keys here are local, remote, resolve-interval, address, peer, addresses, routes, ` +
			`mtu, ttl, tos, nopmtudisc, dev, fwmark, icmp, keepalive, keepalive-retries, queues, offload, tx, fast-path, clamp-mss`},
		{`local = "192.0.2.9"`, at + "1: tunnel.tun01.local: given twice, first at goipip.toml:2: leave one out"},

		// Types.
		{`mtu = "1400"`, at + "7: tunnel.tun01.mtu: is a string: must be a number, as in mtu = 1400"},
		{`mtu = 0`, at + "7: tunnel.tun01.mtu: 0: must be 68 to 65515: leave it out for the route's"},
		{`mtu = 1.5`, at + "7: tunnel.tun01.mtu: is a number with a fraction: must be a number, as in mtu = 1400"},
		{`mtu = 2026-01-02`, at + "7: tunnel.tun01.mtu: is a date: must be a number, as in mtu = 1400"},
		{`queues = true`, at + "10: tunnel.tun01.queues: is a boolean: must be a number, as in queues = 1"},
		{`address = 10`, at + `11: tunnel.tun01.address: is a number: must be a string, as in address = "10.0.0.1"`},
		{`ttl = true`, at + `7: tunnel.tun01.ttl: is a boolean: must be a number or a string, as in ttl = 64 or ttl = "inherit"`},
		{`tos = [16]`, at + `7: tunnel.tun01.tos: is a list: must be a string, as in tos = "0x10" or tos = "inherit"`},
		{`nopmtudisc = "yes"`, at + "14: tunnel.tun01.nopmtudisc: is a string: must be a boolean, as in nopmtudisc = true"},
		{`dev = {}`, at + `7: tunnel.tun01.dev: is a table: must be a string, as in dev = "eth0"`},
		{`[[tunnel.tun01.dev]]`, at + `16: tunnel.tun01.dev: is a list: must be a string, as in dev = "eth0"`},
		{`addresses = "10.0.0.1"`, at + `13: tunnel.tun01.addresses: is a string: must be a list of strings, as in addresses = ["10.0.0.1/24"]`},
		{`addresses = ["10.0.0.1", 7]`, at + `26: tunnel.tun01.addresses[1]: is a number: must be a string, as in addresses = ["10.0.0.1/24"]`},
		{`routes = "default"`, at + `10: tunnel.tun01.routes: is a string: must be a list of tables, as in routes = [{to = "198.51.100.0/24"}]`},
		{`routes = ["default"]`, at + `11: tunnel.tun01.routes[0]: is a string: must be a table, as in routes = [{to = "198.51.100.0/24"}]`},

		// Values.
		{`peer = "10.0.0.300"`, at + `8: tunnel.tun01.peer: "10.0.0.300": must be an IPv4 address, such as 192.0.2.1`},
		{`address = "10.0.0.1/33"`, at + `11: tunnel.tun01.address: "10.0.0.1/33": must be an IPv4 address, such as 192.0.2.1 or 192.0.2.1/24`},
		{`address = "2001:db8::1/64"`, at + "11: tunnel.tun01.address: 2001:db8::1/64: an ipip tunnel carries IPv4 only"},
		{`address = "0.0.0.0/8"`, at + "11: tunnel.tun01.address: 0.0.0.0/8: " + notInner},
		{`address = "10.0.0.1/0"`, at + "11: tunnel.tun01.address: 10.0.0.1/0: the kernel makes no route for a prefix length of 0: give 1 to 32"},
		{`peer = "10.0.0.2"`, at + "8: tunnel.tun01.peer: 10.0.0.2 needs address, the inner address of this end"},
		{`mtu = 67`, at + "7: tunnel.tun01.mtu: 67: must be 68 to 65515"},
		{`mtu = 99999999999999999999`, at + "7: tunnel.tun01.mtu: 99999999999999999999: too large a number"},
		{`ttl = 256`, at + "7: tunnel.tun01.ttl: 256: must be 1 to 255, or inherit"},
		{`ttl = 99999999999999999999`, at + "7: tunnel.tun01.ttl: 99999999999999999999: must be 1 to 255, or inherit"},
		{`tos = "100"`, at + `7: tunnel.tun01.tos: "100": must be hexadecimal, 00 to ff, a name such as EF (rt_dsfield), or inherit`},
		{`tos = 0x100`, at + "7: tunnel.tun01.tos: 0x100: must be hexadecimal, 00 to ff, a name such as EF (rt_dsfield), or inherit"},
		{`tos = 10`, at + "7: tunnel.tun01.tos: 10: must be hexadecimal, 00 to ff, a name such as EF (rt_dsfield), or inherit"},
		{`fwmark = -1`, at + "10: tunnel.tun01.fwmark: -1: must be 0 to 0xffffffff"},
		{`icmp = "no"`, at + `8: tunnel.tun01.icmp: "no": must be linux or rfc2003`},
		{`resolve-interval = "30s"`, at + "20: tunnel.tun01.resolve-interval: needs a host name as remote"},
		{`resolve-interval = 30`, at + `20: tunnel.tun01.resolve-interval: is a number: must be a string, as in resolve-interval = "30s"`},
		{`keepalive = "10"`, at + `13: tunnel.tun01.keepalive: "10": must be a time from 100ms to 1h, such as 10s`},
		{`keepalive = "10s"`, at + "13: tunnel.tun01.keepalive: needs address, the inner address of this end, to which replies come back by the tunnel"},
		{`keepalive-retries = 3`, at + "21: tunnel.tun01.keepalive-retries: 3 needs keepalive, the time between two echo requests"},
		{`keepalive-retries = 0`, at + "21: tunnel.tun01.keepalive-retries: 0: must be 1 to 100"},
		{`keepalive-retries = 101`, at + "21: tunnel.tun01.keepalive-retries: 101: must be 1 to 100"},
		{`fast-path = true`, at + `13: tunnel.tun01.fast-path: is a boolean: must be a string, as in fast-path = "auto"`},
		{`fast-path = "yes"`, at + `13: tunnel.tun01.fast-path: "yes": must be off or auto or on`},
		{`clamp-mss = true`, at + `13: tunnel.tun01.clamp-mss: is a boolean: must be a number or a string, as in clamp-mss = 1360 or clamp-mss = "auto"`},
		{`clamp-mss = "on"`, at + `13: tunnel.tun01.clamp-mss: "on": ` + clampMSS},
		{`clamp-mss = 535`, at + `13: tunnel.tun01.clamp-mss: 535: ` + clampMSS},
		{`clamp-mss = "65476"`, at + `13: tunnel.tun01.clamp-mss: "65476": ` + clampMSS},
		{`clamp-mss = -1`, at + `13: tunnel.tun01.clamp-mss: -1: ` + clampMSS},
		{`tx = "tcp"`, at + `6: tunnel.tun01.tx: "tcp": must be auto or raw or packet`},
		{`offload = ""`, at + `11: tunnel.tun01.offload: "": must be auto or off`},
		{`queues = 0`, at + "10: tunnel.tun01.queues: 0: must be 1 to 255"},
		{`dev = "a/b"`, at + `7: tunnel.tun01.dev: "a/b": not a name that a link can have`},
		{"nopmtudisc = true\nttl = 5", at + "14: tunnel.tun01.nopmtudisc: ttl != 0 and nopmtudisc are incompatible: leave out ttl or nopmtudisc"},

		// Elements of lists.
		{`addresses = ["a"]`, at + `14: tunnel.tun01.addresses[0]: "a": must be an IPv4 address, such as 192.0.2.1 or 192.0.2.1/24`},
		{`addresses = ["2001:db8::1"]`, at + `14: tunnel.tun01.addresses[0]: 2001:db8::1/32: an ipip tunnel carries IPv4 only`},
		{`addresses = ["2001:db8::1/64"]`, at + `14: tunnel.tun01.addresses[0]: 2001:db8::1/64: an ipip tunnel carries IPv4 only`},
		{`addresses = ["10.0.0.1/0"]`, at + `14: tunnel.tun01.addresses[0]: 10.0.0.1/0: the kernel makes no route for a prefix length of 0: give 1 to 32`},
		{`addresses = ["10.0.0.1", "a", "127.0.0.1/8"]`, at + `26: tunnel.tun01.addresses[1]: "a": must be an IPv4 address, such as 192.0.2.1 or 192.0.2.1/24` + "\n" +
			at + `31: tunnel.tun01.addresses[2]: 127.0.0.1/8: ` + notInner},
		{`addresses = ["10.0.0.1", "10.0.0.1/32"]`, at + `26: tunnel.tun01.addresses[1]: "10.0.0.1/32": twice in the list: leave one out`},
		{`routes = [{}]`, at + `11: tunnel.tun01.routes[0]: to is missing: give the destination, as in to = "198.51.100.0/24"`},
		{`routes = [{to = "10.0.0.1/8"}]`, at + `17: tunnel.tun01.routes[0].to: 10.0.0.1/8: has bits beyond the prefix length: write 10.0.0.0/8`},
		{`routes = [{to = "all"}]`, at + `17: tunnel.tun01.routes[0].to: "all": must be a prefix, such as 198.51.100.0/24, or default`},
		{`routes = [{to = "::/0"}]`, at + `17: tunnel.tun01.routes[0].to: ::/0: an ipip tunnel carries IPv4 only`},
		{`routes = [{to = 5}]`, at + `17: tunnel.tun01.routes[0].to: is a number: must be a string, as in to = "198.51.100.0/24"`},
		{`routes = [{dst = "default"}]`, at + `11: tunnel.tun01.routes[0]: to is missing: give the destination, as in to = "198.51.100.0/24"` + "\n" +
			at + "12: tunnel.tun01.routes[0].dst: unknown key: the keys here are to, metric, table"},
		{`routes = [{to = "default", metric = -1}]`, at + "37: tunnel.tun01.routes[0].metric: -1: must be 0 to 2147483647"},
		{`routes = [{to = "default", table = 0}]`, at + "36: tunnel.tun01.routes[0].table: 0: must be 1 to 2147483647"},
		{`routes = [{to = "default"}, {to = "0.0.0.0/0"}]`, at + "29: tunnel.tun01.routes[1]: the same route is in the list before: leave one out"},

		// Other tables.
		{"[tunnel.tun01]", at + "9: tunnel.tun01: given twice, first at goipip.toml:1: leave one out"},
		{pair("tun02", "192.0.2.1"), "goipip.toml:6:10: tunnel.tun02.remote: tunnel.tun01 at goipip.toml:1 is between 10.0.0.1 and 192.0.2.1 too: " +
			"give each tunnel a pair of ends of its own"},
		{"[tunnel.tun02]\nremote = '192.0.2.1'\n[tunnel.tun03]\nlocal = 'any'\nremote = '192.0.2.1'",
			"goipip.toml:8:10: tunnel.tun03.remote: tunnel.tun02 at goipip.toml:4 is between any and 192.0.2.1 too: give each tunnel a pair of ends of its own"},
		{"[tunnel.tun02]\nremote = '0.0.0.0'", "goipip.toml:5:10: tunnel.tun02.remote: 0.0.0.0: not the address of one host"},
		{"[tunnel.tun02]\nlocal = '10.0.0.300'\nremote = '192.0.2.1'",
			`goipip.toml:5:9: tunnel.tun02.local: "10.0.0.300": must be an IPv4 address, such as 192.0.2.1, a device, such as eth0, or any`},
		{"[tunnel.tun02]\nremote = '192.0.2.300'", `goipip.toml:5:10: tunnel.tun02.remote: "192.0.2.300": must be an IPv4 address, such as 192.0.2.1, or a host name`},
		{pair("tun02", "gw") + pair("tun03", "gw"), "goipip.toml:9:10: tunnel.tun03.remote: tunnel.tun02 at goipip.toml:4 is between 10.0.0.1 and gw too: " +
			"give each tunnel a pair of ends of its own"},
		{pair("tun02", "::1"), "goipip.toml:6:10: tunnel.tun02.remote: ::1: ipip runs over IPv4 only, and this is an IPv6 address"},
		{pair(`"a b"`, "192.0.2.2"), at + `9: tunnel."a b": "a b": not a name that a link can have`},
		{pair("abcdefghijklmnop", "192.0.2.2"), at + `9: tunnel.abcdefghijklmnop: "abcdefghijklmnop": 16 bytes long, and a link's name has at most 15`},
		{pair(`""`, "192.0.2.2"), at + `9: tunnel."": a tunnel needs the name of its link: write [tunnel.NAME]`},
		{"[tunnel.tun02]", at + "9: tunnel.tun02.remote: is missing: give the IPv4 address of this tunnel's remote end"},
		{"[[tunnel.tun02]]", at + "10: tunnel.tun02: is a list: must be a table, as [tunnel.NAME]"},
		{"[tunnel]\ntun02 = 5", "goipip.toml:5:9: tunnel.tun02: is a number: must be a table, as [tunnel.NAME]"},
		{"[tun02]", at + "2: tun02: unknown key: the keys here are tunnel, metrics, log-level, log-format"},
		{"[tunel.tun02]\nlocal = 5", at + `2: tunel: unknown key: did you mean "tunnel"?`},
		{"[log_level]", at + `2: log_level: unknown key: did you mean "log-level"?`},

		// What is not TOML.
		{"mtu 1400", at + "5: expected '=' after key"},
		{`mtu = "1400`, at + `11: unterminated basic string`},
		{"[tunnel.tun02]\nmtu =", "goipip.toml:5:5: expected value, not end of input"},
		{"mtu = 1979-02-30T25:00:00", at + "7: tunnel.tun01.mtu: is a date: must be a number, as in mtu = 1400"},
		{"tos = {a = 1}\ntos.b = 2", at + `7: tunnel.tun01.tos: is a table: must be a string, as in tos = "0x10" or tos = "inherit"` + "\n" +
			"goipip.toml:5:1: key tos is already defined"},
	} {
		inFiles(t, map[string]string{"goipip.toml": pair("tun01", "192.0.2.1") + c.line})
		checkError(t, "goipip.toml", c.line, c.want)
	}
}

// TestErrorsAtTheTop are those of a whole file.
func TestErrorsAtTheTop(t *testing.T) {
	const end = "\n[tunnel.tun01]\nlocal = '10.0.0.1'\nremote = '10.0.0.2'"
	for _, c := range []struct{ text, want string }{
		{"", "goipip.toml: no tunnel: add a table [tunnel.NAME] with the keys local and remote"},
		{"# nothing\n[tunnel]", "goipip.toml: no tunnel: add a table [tunnel.NAME] with the keys local and remote"},
		{"tunnel = 1", "goipip.toml:1:10: tunnel: is a number: must be a table, as [tunnel.NAME]"},
		{"mtu = 1400" + end, "goipip.toml:1:1: mtu: stands outside of a table: put it below [tunnel.NAME]"},
		{"log-level = 'loud'" + end, `goipip.toml:1:13: log-level: "loud": must be info or debug or warn or error`},
		{"metrics = 9747" + end, `goipip.toml:1:11: metrics: is a number: must be a string, as in metrics = ":9747"`},
		{"metrics = 'eth0:9747'" + end, `goipip.toml:1:11: metrics: "eth0:9747": must be a port, such as :9747, for this host alone, or an address with one, such as 192.0.2.1:9747`},
		{"log-format = 5" + end, `goipip.toml:1:14: log-format: is a number: must be a string, as in log-format = "text"`},
		{"log-level = 'info'\nlog-level = 'warn'" + end, "goipip.toml:2:1: log-level: given twice, first at goipip.toml:1: leave one out"},
		{"\xef\xbb\xbf" + end, "goipip.toml:1:1: invalid character at start of key: U+00EF 'ï'"},
	} {
		inFiles(t, map[string]string{"goipip.toml": c.text})
		checkError(t, "goipip.toml", c.text, c.want)
	}
}

// TestErrorsOfManyFiles come all at once, by file and position, and name the places
// in other files.
func TestErrorsOfManyFiles(t *testing.T) {
	inFiles(t, map[string]string{
		"a.toml": "log-level = 'warn'\n" + pair("tun01", "192.0.2.1") + "mtu = 5\nttl = 256\nqueues = 0",
		"b.toml": "mtu = =",
		"c.toml": "log-level = 'info'\n" + pair("tun01", "192.0.2.9") + pair("tun02", "192.0.2.1"),
		"d.toml": "[tunnel.tun03]\nlokal = '10.0.0.1'\nremote = 5",
	})
	checkError(t, ".", "four files", `a.toml:5:7: tunnel.tun01.mtu: 5: must be 68 to 65515
a.toml:6:7: tunnel.tun01.ttl: 256: must be 1 to 255, or inherit
a.toml:7:10: tunnel.tun01.queues: 0: must be 1 to 255
b.toml:1:7: unexpected character U+003D '=' at start of value
c.toml:1:1: log-level: given twice, first at a.toml:1: leave one out
c.toml:2:9: tunnel.tun01: given twice, first at a.toml:2: leave one out
c.toml:7:10: tunnel.tun02.remote: tunnel.tun01 at a.toml:2 is between 10.0.0.1 and 192.0.2.1 too: give each tunnel a pair of ends of its own
d.toml:2:1: tunnel.tun03.lokal: unknown key: did you mean "local"?
d.toml:3:10: tunnel.tun03.remote: is a number: must be a string, as in remote = "192.0.2.2"`)

	inFiles(t, nil)
	checkError(t, ".", "an empty directory", ".: no file *.toml in this directory: add one with a table [tunnel.NAME]")
}

func checkError(t *testing.T, path, name, want string) {
	t.Helper()
	f, err := config.Read(path)
	switch {
	case err == nil:
		t.Errorf("%s: no error, want\n%s", name, want)
	case err.Error() != want:
		t.Errorf("%s: error\n%v\nwant\n%s", name, err, want)
	case f != nil:
		t.Errorf("%s: a configuration beside the error", name)
	}
}
