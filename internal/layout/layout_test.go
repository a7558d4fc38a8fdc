// Package layout_test holds the shape of the project: which room may import
// which, and where unsafe, system calls and byte offsets live.
package layout_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// rooms says for each package which of the project's others its code may import.
// Tests may import more.
var rooms = map[string][]string{
	"cmd/goipip": {
		"internal/daemon", "internal/daemon/config", "internal/daemon/control", "internal/capture", "internal/doctor", "internal/iproute",
		"internal/metrics", "internal/resolver", "internal/show", "internal/top", "internal/tunnel", "internal/logqueue", "internal/netlab",
	},
	"internal/capture":        {"internal/packet"},
	"internal/doctor":         {"internal/fastpath", "internal/resolver", "internal/tunnel", "internal/underlay", "encap", "tun", "rawsock", "internal/packet"},
	"internal/iproute":        {"internal/dsfield", "internal/tunnel"},
	"internal/show":           {"internal/daemon/config", "internal/daemon/control", "internal/stats"},
	"internal/top":            {"internal/daemon/control", "internal/show"},
	"internal/metrics":        {"internal/daemon/control", "internal/stats"},
	"internal/dsfield":        {},
	"internal/daemon":         {"internal/daemon/config", "internal/daemon/control", "internal/resolver", "internal/stats", "internal/tunnel", "tun"},
	"internal/daemon/config":  {"internal/dsfield", "internal/tunnel"},
	"internal/daemon/control": {"internal/rundir", "internal/tunnel"},
	"internal/tunnel":         {"internal/engine", "internal/fastpath", "internal/rundir", "internal/underlay", "encap", "tun", "rawsock", "internal/packet", "internal/stats"},
	"internal/fastpath":       {"encap", "internal/packet", "internal/stats"},
	"internal/engine":         {"encap", "tun", "rawsock", "internal/descriptor", "internal/packet", "internal/stats"},
	"internal/underlay":       {"internal/packet"},
	"encap":                   {"internal/packet", "internal/stats"},
	"tun":                     {"internal/descriptor", "internal/packet"},
	"rawsock":                 {"internal/descriptor", "internal/packet", "internal/stats"},
	"internal/resolver":       {},
	"internal/rundir":         {},
	"internal/descriptor":     {},
	"internal/logqueue":       {},
	"internal/packet":         {},
	"internal/stats":          {},
	"internal/netlab":         {"internal/packet"},
	"internal/netlab/labtest": {"internal/netlab"},
	"internal/oracle":         {},
	"internal/layout":         {},
	"internal/rules":          {},
	"deploy/systemd":          {},
	"docs":                    {},
	"deploy":                  {},
	"bench":                   {},
	"bench/naive":             {},
	"bench/report":            {},
}

// homes says which packages may import what only a few need. internal/netlab is
// a laboratory, and may do what it studies.
var homes = map[string][]string{
	"unsafe":                                   {"tun", "rawsock", "internal/netlab"},
	"encoding/binary":                          {"internal/packet", "internal/capture", "internal/fastpath", "internal/netlab"},
	"golang.org/x/sys/unix":                    {"cmd/goipip", "internal/capture", "internal/daemon/control", "internal/doctor", "internal/fastpath", "internal/underlay", "tun", "rawsock", "internal/descriptor", "internal/netlab", "internal/netlab/labtest"},
	"golang.org/x/net/icmp":                    {"internal/doctor", "internal/netlab"},
	"golang.org/x/net/ipv4":                    {"internal/doctor", "rawsock", "internal/netlab", "bench/naive"},
	"golang.org/x/net/bpf":                     {"rawsock", "internal/capture", "internal/netlab"},
	"github.com/songgao/water":                 {"tun", "bench/naive"},
	"github.com/vishvananda/netlink":           {"tun", "internal/doctor", "internal/underlay", "internal/tunnel", "internal/netlab"},
	"github.com/google/nftables":               {"internal/doctor"},
	"github.com/google/nftables/expr":          {"internal/doctor"},
	"github.com/safchain/ethtool":              {"internal/doctor"},
	"github.com/spf13/cobra":                   {"cmd/goipip"},
	"github.com/spf13/pflag":                   {"cmd/goipip"},
	"github.com/pelletier/go-toml/v2":          {"internal/daemon/config"},
	"github.com/pelletier/go-toml/v2/unstable": {"internal/daemon/config"},
	"github.com/gopacket/gopacket":             {"internal/capture", "internal/netlab"},
	"github.com/cilium/ebpf":                   {"internal/fastpath", "rawsock", "internal/netlab", "internal/netlab/labtest"},
	"charm.land/bubbletea/v2":                  {"internal/top"},
	"charm.land/lipgloss/v2":                   {"internal/top"},
	"github.com/charmbracelet/colorprofile":    {"internal/top"},
	"github.com/charmbracelet/x/ansi":          {"internal/top"},
	"golang.org/x/perf/benchfmt":               {"bench/report"},
	"github.com/coreos/go-systemd/v22/daemon":  {"cmd/goipip"},
	"github.com/coreos/go-systemd/v22/journal": {"cmd/goipip"},
	"testing":                               {"internal/netlab/labtest"},
	"github.com/prometheus/client_model/go": {"internal/metrics"},
	"github.com/prometheus/client_golang/prometheus":            {"internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/collectors": {"internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/promhttp":   {"internal/metrics"},
	"github.com/miekg/dns":                                      {"internal/resolver"},
}

// source is one Go file.
type source struct {
	path    string // slash-separated, from the root of the project
	pkg     string // its directory
	imports []string
}

func (s source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

func sources(t *testing.T) []source {
	t.Helper()
	var files []source
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(rel)}
		s.pkg = filepath.ToSlash(filepath.Dir(rel))
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, name)
		}
		files = append(files, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("found only %d files", len(files))
	}
	return files
}

func TestImportDirections(t *testing.T) {
	for _, s := range sources(t) {
		may, known := rooms[s.pkg]
		if !known {
			t.Errorf("%s: a new room: say in this test what it may import", s.path)
			continue
		}
		for _, name := range s.imports {
			inner, ours := strings.CutPrefix(name, "goipip/")
			if ours && !s.test() && !slices.Contains(may, inner) {
				t.Errorf("%s imports %s: %s may import %q only", s.path, inner, s.pkg, may)
			}
		}
	}
}

func TestHomes(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		for _, name := range s.imports {
			if home, ok := homes[name]; ok && !slices.Contains(home, s.pkg) {
				t.Errorf("%s imports %s: its home is %q", s.path, name, home)
			}
		}
	}
}

func TestUnsafeShowsInTheFileName(t *testing.T) {
	for _, s := range sources(t) {
		if slices.Contains(s.imports, "unsafe") && !s.test() && !strings.HasSuffix(s.path, "_linux.go") {
			t.Errorf("%s imports unsafe: move it to a file that says so, NAME_linux.go", s.path)
		}
	}
}
