package config_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"goipip/internal/daemon/config"
)

// TestDocs holds docs/config.md to the code: its example is read, each key stands in
// a table, and its errors are those of the files below.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	_, example, _ := strings.Cut(doc, "```toml\n")
	example, _, _ = strings.Cut(example, "```")
	inFiles(t, map[string]string{"goipip.toml": example})
	if f, err := config.Read("goipip.toml"); err != nil || len(f.Tunnels) != 3 {
		t.Errorf("the example: %+v, %v", f, err)
	}

	for _, key := range slices.Concat(config.Keys(), config.ProcessKeys(), []string{"to", "metric", "table"}) {
		if !strings.Contains(doc, "| `"+key+"` |") && !strings.Contains(doc, "`"+key+"`, `") && !strings.Contains(doc, ", `"+key+"` |") {
			t.Errorf("docs/config.md lacks the key %s", key)
		}
	}

	inFiles(t, map[string]string{
		"a.toml": pair("tun01", "10.0.0.2") + "mtu = '1400'\n\n" + "[tunnel.tun02]\nlokal = '10.0.0.1'\nremote = '10.0.0.3'\nttl = 256\n",
		"b.toml": pair("tun01", "10.0.0.4") + "\n" + pair("tun03", "10.0.0.2") + "tos 10\n",
	})
	_, err = config.Read(".")
	if err == nil {
		t.Fatal("no error")
	}
	if want := "    " + strings.ReplaceAll(err.Error(), "\n", "\n    "); !strings.Contains(doc, want+"\n") {
		t.Errorf("docs/config.md should have\n%s", want)
	}
}
