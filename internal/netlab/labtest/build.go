package labtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// binDir holds what is built, until Main removes it.
var binDir string

// errNoMain is the error of a build that nothing would remove.
var errNoMain = errors.New("the test binary's TestMain does not call labtest.Main")

// Main is the TestMain of a package that calls [BuildGoipip], [Build] or [BuildWireguard]: it runs the tests and removes the
// binaries after them. A goipip with the race detector exits at once, where it would wait for a second.
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
		return 0, fmt.Errorf("make a directory for binaries: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(binDir)) }()
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// BuildGoipip returns the path of a goipip binary, which it builds once in a test process. It has the race detector where
// the test has it. The package's TestMain must be [Main].
func BuildGoipip(tb testing.TB) string {
	tb.Helper()
	bin, err := buildGoipip()
	if err != nil {
		tb.Fatal(err)
	}
	return bin
}

var buildGoipip = sync.OnceValues(func() (string, error) {
	var flags []string
	if raceEnabled {
		flags = append(flags, "-race")
	}
	return build("goipip/cmd/goipip", "goipip", flags...)
})

// Build returns the path of the binary of a main package, such as "goipip/cmd/goipip", which it builds once in a test
// process, as make does, without the race detector. The package's TestMain must be [Main].
func Build(tb testing.TB, pkg string) string {
	tb.Helper()
	once, _ := plain.LoadOrStore(pkg, sync.OnceValues(func() (string, error) {
		return build(pkg, filepath.Join("plain", path.Base(pkg)), "-trimpath")
	}))
	bin, err := once.(func() (string, error))()
	if err != nil {
		tb.Fatal(err)
	}
	return bin
}

// plain has a func() (string, error) for each package that Build has built.
var plain sync.Map

// build builds a package into a file below binDir.
func build(pkg, file string, flags ...string) (string, error) {
	if binDir == "" {
		return "", fmt.Errorf("build %s: %w", pkg, errNoMain)
	}
	bin := filepath.Join(binDir, file)
	args := append([]string{"build", "-o", bin}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	if !slices.Contains(flags, "-race") {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the Makefile, so that they share what is compiled
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, bytes.TrimSpace(out))
	}
	return bin, nil
}

// wireguardModule is wireguard-go, at a version so that results compare.
const wireguardModule = "golang.zx2c4.com/wireguard@v0.0.0-20260522210424-ecfc5a8d5446"

// BuildWireguard returns the path of a wireguard-go binary, which it installs once in a test process from its Go module.
// It needs "wireguard-go", see [Need]. The control socket of a device NAME is NAME.sock, beside the binary. The package's
// TestMain must be [Main].
func BuildWireguard(tb testing.TB) string {
	tb.Helper()
	Need(tb, "wireguard-go")
	bin, err := buildWireguard()
	if err != nil {
		tb.Fatal(err)
	}
	return bin
}

var buildWireguard = sync.OnceValues(func() (string, error) {
	if binDir == "" {
		return "", fmt.Errorf("install %s: %w", wireguardModule, errNoMain)
	}
	// The variable is one for the linker, see its comment in ipc/uapi_unix.go. Else sockets would go to /var/run.
	cmd := exec.Command("go", "install", "-ldflags", "-X golang.zx2c4.com/wireguard/ipc.socketDirectory="+binDir, wireguardModule)
	cmd.Env = append(os.Environ(), "GOBIN="+binDir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("install %s: %w: %s", wireguardModule, err, bytes.TrimSpace(out))
	}
	return filepath.Join(binDir, "wireguard"), nil
})
