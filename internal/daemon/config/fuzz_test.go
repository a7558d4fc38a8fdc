package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// FuzzRead reads any bytes as a file. A file that is taken says the same to go-toml's
// decoder, and means the same when its configuration is written and read again.
func FuzzRead(f *testing.F) {
	every, err := os.ReadFile("testdata/every.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(every)
	for _, s := range []string{
		"", "tunnel.a.local = '192.0.2.1'\ntunnel.a.remote = '192.0.2.2'", "[tunnel.a]\nlokal = 1\nmtu = [[1], {a = 2}]",
		"[[tunnel.a.routes]]\nto = 'default'\n[[tunnel.a.routes]]\n[tunnel.a.routes.to]\n[tunnel.a]", "a = 1\na.b = 2\n[a]\n[[a]]\n[a.b]",
		"[tunnel.\"\"]\nlocal = \"\\u00e9\"\nttl = 1979-05-40", "tunnel = {a = {local = '192.0.2.1', remote = '192.0.2.2', routes = []}}", "a = \"",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "goipip.toml")
	f.Fuzz(func(t *testing.T, data []byte) {
		got := read(t, path, data)
		if got == nil {
			return
		}
		var want map[string]any
		if err := toml.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q is taken: %v", data, err)
		}
		if diff := cmp.Diff(want, parse(path, data).root.generic()); diff != "" {
			t.Errorf("%q: decoder and tree differ:\n%s", data, diff)
		}
		text := written(got)
		again := read(t, path, []byte(text))
		if again == nil {
			t.Fatalf("%q, written again as\n%s\nis not taken", data, text)
		}
		for _, f := range []*File{got, again} {
			for i := range f.Tunnels {
				f.Tunnels[i].Line = 0
			}
		}
		if diff := cmp.Diff(got, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q, written again as\n%s\ndiffers:\n%s", data, text, diff)
		}
	})
}

// read returns nil for data that is not taken. Each error then says where it is.
func read(t *testing.T, path string, data []byte) *File {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Read(path)
	if err == nil {
		return f
	}
	lines := strings.Split(string(data), "\n")
	for _, err := range err.(interface{ Unwrap() []error }).Unwrap() {
		e := err.(*Error)
		if strings.HasPrefix(e.Problem, "no tunnel") {
			continue
		}
		if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > len(lines[e.Line-1])+1 || e.Problem == "" {
			t.Errorf("%q: no such place: %v", data, e)
		}
	}
	return nil
}

// generic is n as go-toml's decoder has it.
func (n *node) generic() any {
	switch n.kind {
	case unstable.Table:
		all := map[string]any{}
		for _, kid := range n.kids {
			all[kid.name] = kid.generic()
		}
		return all
	case unstable.Array:
		all := []any{}
		for _, kid := range n.kids {
			all = append(all, kid.generic())
		}
		return all
	case unstable.Bool:
		return n.text == "true"
	case unstable.Integer:
		v, _ := strconv.ParseInt(n.text, 0, 64)
		return v
	}
	return n.text
}

// written is f as a file.
func written(f *File) string {
	var b strings.Builder
	key := func(name, value string) { b.WriteString(name + " = " + value + "\n") }
	str := func(name, value string) {
		if value != "" {
			key(name, quoted(value))
		}
	}
	str("metrics", f.Metrics)
	str("log-level", f.LogLevel)
	str("log-format", f.LogFormat)
	for _, t := range f.Tunnels {
		b.WriteString("[tunnel." + quoted(t.Config.Name) + "]\n")
		for name, setting := range Settings {
			text := setting.Text(&t.Config)
			if text == "inherit" && name == "tos" {
				text += "/" + strconv.FormatUint(uint64(t.Config.TOS), 16) // which Text leaves out
			}
			str(name, text)
		}
		if t.Config.MTU != 0 {
			key("mtu", strconv.Itoa(t.Config.MTU))
		}
		if t.Config.KeepaliveRetries != 0 {
			key("keepalive-retries", strconv.Itoa(t.Config.KeepaliveRetries))
		}
		key("queues", strconv.Itoa(t.Config.Queues))
		key("nopmtudisc", strconv.FormatBool(t.Config.NoPMTUDisc))
		str("dev", t.Config.Device)
		b.WriteString("addresses = [")
		for _, a := range t.Addresses {
			b.WriteString(quoted(a.String()) + ", ")
		}
		b.WriteString("]\n")
		for _, r := range t.Routes {
			b.WriteString("[[tunnel." + quoted(t.Config.Name) + ".routes]]\n")
			key("to", quoted(r.To.String()))
			key("metric", strconv.Itoa(r.Metric))
			if r.Table != 0 {
				key("table", strconv.Itoa(r.Table))
			}
		}
	}
	return b.String()
}

// quoted is s as TOML has it.
func quoted(s string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, `\U%08x`, r)
	}
	return `"` + b.String() + `"`
}
