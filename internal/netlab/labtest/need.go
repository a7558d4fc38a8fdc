package labtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"goipip/internal/netlab"
)

// requireEnv names the needs, separated by commas, whose lack fails a test; "all" stands for every one. CI sets it, so
// that a test cannot disappear unnoticed.
const requireEnv = "GOIPIP_REQUIRE"

// checks has for each need what tries it, once.
var checks = map[string]func() error{
	"root":            sync.OnceValue(checkRoot),
	"tun":             sync.OnceValue(checkTUN),
	"bpf":             sync.OnceValue(checkBPF),
	"uml":             sync.OnceValue(checkUML),
	"socat":           program("socat"),
	"tcpdump":         program("tcpdump"),
	"ping":            program("ping"),
	"ip":              program("ip"),
	"iptables-legacy": program("iptables-legacy"),
	"ethtool":         program("ethtool"),
	"nft":             program("nft"),
	"make":            program("make"),
	"clang":           program("clang"),
	"setpriv":         program("setpriv"),
	"setcap":          program("setcap"),
	"curl":            program("curl"),
	"promtool":        program("promtool"),
	"prometheus":      program("prometheus"),
	"tshark":          program("tshark"),
	"dnsmasq":         program("dnsmasq"),
	"systemd-analyze": program("systemd-analyze"),
	"systemd":         sync.OnceValue(checkSystemd),
	"wireguard-go":    checkWireguard,
	"dpkg":            program("dpkg"),
	"unshare":         program("unshare"),
	"nfpm":            sync.OnceValue(checkNfpm),
	"lintian":         program("lintian"),
	"rpm":             program("rpm"),
	"zsh":             program("zsh"),
	"fish":            program("fish"),
	"actionlint":      program("go"),
	"arm64":           program("go"),
}

// long are the needs of tests that take long: they boot a kernel, or install a module.
var long = []string{"uml", "wireguard-go", "nfpm"}

// optional are needs of tests that run only where GOIPIP_REQUIRE names them, which "all" does not: a build for another
// architecture takes a minute, and can fail only when the Makefile or deploy/package changes.
var optional = []string{"arm64"}

// Need skips the test, with the reason, where the machine lacks one of needs, and fails it instead where the environment
// variable GOIPIP_REQUIRE names that need or is "all". Under go test -short it skips a test that needs "uml",
// "wireguard-go" or "nfpm" in any case. The needs are "root" (may make network namespaces), "tun" (/dev/net/tun opens), "uml" (User
// Mode Linux and its modules), "systemd" (may run as process 1 of a namespace), "bpf" (may load a program), "wireguard-go" (its Go
// module installs), "nfpm" (likewise), and the programs "socat", "tcpdump", "ping", "ip", "ethtool", "iptables-legacy", "nft",
// "make", "clang", "setpriv", "setcap", "curl", "promtool", "tshark", "dnsmasq", "systemd-analyze", "dpkg", "unshare", "lintian",
// "rpm", "zsh", "fish" and, by go run, "actionlint". A test that needs "arm64", a build for another architecture, skips unless
// GOIPIP_REQUIRE names that.
func Need(tb testing.TB, needs ...string) {
	tb.Helper()
	for _, need := range needs {
		check, ok := checks[need]
		if !ok {
			tb.Fatalf("unknown need %q: the needs are %q", need, slices.Sorted(maps.Keys(checks)))
		}
		if testing.Short() && slices.Contains(long, need) {
			tb.Skipf("needs %s, which go test -short leaves out", need)
		}
		if slices.Contains(optional, need) && !required(need) {
			tb.Skipf("needs %s, which %s does not name", need, requireEnv)
		}
		err := check()
		if err == nil {
			continue
		}
		if required(need) {
			tb.Fatalf("%s is required by %s: %v", need, requireEnv, err)
		}
		tb.Skipf("needs %s: %v", need, err)
	}
}

// Missing returns why [Need] would not let a test go on, or nil. It is for benchmarks that name what is missing where nobody
// sees a skip, as in a benchmark without -v.
func Missing(needs ...string) error {
	for _, need := range needs {
		check, ok := checks[need]
		if !ok {
			return fmt.Errorf("unknown need %q", need)
		}
		if err := check(); err != nil {
			return fmt.Errorf("needs %s: %w", need, err)
		}
	}
	return nil
}

// Long marks a test or subtest as one that takes long: go test -short skips it.
func Long(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skipf("takes long, which go test -short leaves out")
	}
}

func required(need string) bool {
	names := strings.Split(os.Getenv(requireEnv), ",")
	return slices.Contains(names, need) || slices.Contains(names, "all") && !slices.Contains(optional, need)
}

func checkRoot() error {
	lab, err := netlab.New()
	if err != nil {
		return err
	}
	return lab.Close()
}

func checkTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func checkUML() error {
	if _, err := exec.LookPath("linux.uml"); err != nil {
		return err
	}
	const ipip = "/usr/lib/uml/modules/*/kernel/net/ipv4/ipip.ko"
	if found, err := filepath.Glob(ipip); err != nil || len(found) == 0 {
		return fmt.Errorf("no file %s: install Debian's user-mode-linux", ipip)
	}
	return nil
}

func checkBPF() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "MIT",
	})
	if err != nil {
		return fmt.Errorf("load a bpf program: %w", err)
	}
	return prog.Close()
}

func checkSystemd() error {
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		return err
	}
	parent, err := ControlGroups()
	if err != nil {
		return err
	}
	group, err := os.MkdirTemp(parent, "goipip-test-")
	if err != nil {
		return err
	}
	return os.Remove(group)
}

// ControlGroups returns where this machine has its control groups (cgroup v2).
func ControlGroups() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no control groups (cgroup v2) at /sys/fs/cgroup")
}

func checkWireguard() error {
	_, err := buildWireguard()
	return err
}

// checkNfpm compiles nfpm as make packages does.
func checkNfpm() error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	if out, err := exec.Command("make", "-C", strings.TrimSpace(string(root)), "nfpm").CombinedOutput(); err != nil {
		return fmt.Errorf("make nfpm: %w: %s", err, out)
	}
	return nil
}

func program(name string) func() error {
	return func() error {
		_, err := exec.LookPath(name)
		return err
	}
}
