package config_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"goipip/internal/daemon/config"
)

var update = flag.Bool("update", false, "write the tables of docs/config.md")

// TestDocs holds docs/config.md to the code: its example is read, its tables are those of
// the keys, and its errors are those of the files below.
func TestDocs(t *testing.T) {
	const page = "../../../docs/config.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	if want := config.Reference(doc); want != doc && *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != doc {
		t.Errorf("docs/config.md has other keys than keys.go: run go test ./internal/daemon/config -run TestDocs -update")
	}

	_, example, _ := strings.Cut(doc, "```toml goipip.toml\n")
	example, _, _ = strings.Cut(example, "```")
	inFiles(t, map[string]string{"goipip.toml": example})
	if f, err := config.Read("goipip.toml"); err != nil || len(f.Tunnels) != 3 {
		t.Errorf("the example: %+v, %v", f, err)
	}

	inFiles(t, map[string]string{
		"a.toml": pair("tun01", "10.0.0.2") + "mtu = '1400'\n\n" + "[tunnel.tun02]\nlokal = '10.0.0.1'\nremote = '10.0.0.3'\nttl = 256\n",
		"b.toml": pair("tun01", "10.0.0.4") + "\n" + pair("tun03", "10.0.0.2") + "tos 10\n",
	})
	_, err = config.Read(".")
	if err == nil {
		t.Fatal("no error")
	}
	if !strings.Contains(doc, "```text\n"+err.Error()+"\n```\n") {
		t.Errorf("docs/config.md should have\n%s", err)
	}
}
