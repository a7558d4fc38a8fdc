package fastpath

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"goipip/internal/netlab/labtest"
)

// clangVersion is the one that the objects are made by: another one makes other instructions.
const clangVersion = "14"

// The objects are what generate.sh makes of the source.
func TestObjects(t *testing.T) {
	labtest.Need(t, "clang")
	out, err := exec.Command("clang", "--version").Output()
	must(t, err)
	version := regexp.MustCompile(`clang version (\d+)`).FindSubmatch(out)
	if version == nil || string(version[1]) != clangVersion {
		t.Fatalf("clang %s is needed, for the same instructions: put it first in PATH; there is %s", clangVersion, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("sh", "generate.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"programs_bpfel.o", "programs_bpfeb.o"} {
		committed, made := contents(t, name), contents(t, filepath.Join(dir, name))
		if diff := cmp.Diff(made, committed); diff != "" {
			t.Errorf("%s is not what the source says: go generate ./internal/fastpath (-want +got):\n%s", name, diff)
		}
	}
	for _, name := range []string{"programs_bpfel.go", "programs_bpfeb.go"} {
		committed, err := os.ReadFile(name)
		must(t, err)
		made, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if !bytes.Equal(committed, made) {
			t.Errorf("%s is not what the source says: go generate ./internal/fastpath", name)
		}
	}
}

// object is what counts of a file.
type object struct {
	Licence  string
	Programs map[string]string // instructions, as they are listed
	Maps     map[string][5]uint32
}

func contents(t *testing.T, path string) object {
	t.Helper()
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	spec, err := ebpf.LoadCollectionSpecFromReader(file)
	must(t, err)
	o := object{Programs: map[string]string{}, Maps: map[string][5]uint32{}}
	for name, p := range spec.Programs {
		o.Licence = p.License
		for _, ins := range p.Instructions {
			o.Programs[name] += fmt.Sprintf("%v %s\n", ins, ins.Reference())
		}
	}
	for name, m := range spec.Maps {
		o.Maps[name] = [5]uint32{uint32(m.Type), m.KeySize, m.ValueSize, m.MaxEntries, m.Flags}
	}
	return o
}
