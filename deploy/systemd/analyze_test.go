package systemd_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"goipip/internal/netlab/labtest"
)

// Each unit as systemd knows it, by its file.
var units = map[string]string{"goipip.service": "goipip.service", "goipip@.service": "goipip@branch.service"}

func TestAnalyze(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "systemd-analyze")
	program := labtest.Build(t, "goipip/cmd/goipip")
	for file, name := range units {
		unit := filepath.Join(t.TempDir(), name)
		write(t, unit, strings.ReplaceAll(read(t, file), "/usr/bin/goipip", program), 0o644)
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", file, err, out)
		}
		// The threshold is in tenths.
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", file, err, out)
		}
		_, level, found := strings.Cut(string(out), "Overall exposure level for ")
		if !found {
			t.Errorf("no level in\n%s", out)
		}
		t.Logf("exposure level of %s", strings.TrimSpace(level))
	}
}

// The two units differ in what they run, and not in what they permit.
func TestUnitsAgree(t *testing.T) {
	_, one, _ := strings.Cut(read(t, "goipip.service"), "\nExecReload=")
	_, other, _ := strings.Cut(read(t, "goipip@.service"), "\nExecReload=")
	if one != other || one == "" {
		t.Error("goipip.service and goipip@.service differ behind ExecReload=")
	}
}
