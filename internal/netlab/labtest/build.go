package labtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binDir holds what buildGoipip makes, until Main removes it.
var binDir string

// Main is the TestMain of a package that calls [BuildGoipip]: it runs the tests and removes the binary after them.
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if binDir, err = os.MkdirTemp("", "goipip-test-"); err != nil {
		return 0, fmt.Errorf("make a directory for the goipip binary: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(binDir)) }()
	return m.Run(), nil
}

// BuildGoipip returns the path of a goipip binary, which it builds once in a test process. It has the race detector where
// the test has it. The package's TestMain must be [Main].
func BuildGoipip(tb testing.TB) string {
	tb.Helper()
	path, err := buildGoipip()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

var buildGoipip = sync.OnceValues(func() (string, error) {
	if binDir == "" {
		return "", errors.New("build goipip: the test binary's TestMain does not call labtest.Main")
	}
	path := filepath.Join(binDir, "goipip")
	args := []string{"build", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "goipip/cmd/goipip")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build goipip: %w: %s", err, out)
	}
	return path, nil
})
