package labtest_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// verdict is a test that only remembers how it ended.
type verdict struct {
	testing.TB
	skipped, failed string
}

func (v *verdict) Helper() {}

func (v *verdict) Skipf(format string, args ...any) {
	v.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func need(needs ...string) *verdict {
	return try(func(v *verdict) { labtest.Need(v, needs...) })
}

// try returns how a test ends that does f.
func try(f func(*verdict)) *verdict {
	v := &verdict{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f(v)
	}()
	<-ended
	return v
}

func TestNeed(t *testing.T) {
	if v := need("no such need"); !strings.Contains(v.failed, `"actionlint" "arm64" "bpf" "clang" "curl" "dnsmasq" "dpkg" "ethtool" "fish" "ip" "iptables-legacy" "lintian" "make" "nfpm" "nft" "ping" "prometheus"`) {
		t.Errorf("unknown need: %+v, want a failure that lists the needs", v)
	}

	t.Setenv("PATH", t.TempDir()) // No socat here. Nobody has looked yet, and the result stays.
	for required, fails := range map[string]bool{"": false, "root,tcpdump": false, "root,socat": true, "all": true} {
		t.Setenv("GOIPIP_REQUIRE", required)
		v := need("socat")
		if (v.failed != "") != fails || (v.skipped != "") == fails || !strings.Contains(v.failed+v.skipped, "socat") {
			t.Errorf("GOIPIP_REQUIRE=%q: %+v, want failure %t", required, v, fails)
		}
	}
	// What is optional is not looked for unless it is named.
	for required, fails := range map[string]bool{"": false, "all": false, "all,arm64": true} {
		t.Setenv("GOIPIP_REQUIRE", required)
		if v := need("arm64"); (v.failed != "") != fails || (v.skipped != "") == fails {
			t.Errorf("GOIPIP_REQUIRE=%q, arm64: %+v, want failure %t", required, v, fails)
		}
	}
	if err := labtest.Missing("socat"); err == nil || !strings.Contains(err.Error(), "socat") {
		t.Errorf("Missing: %v, want an error that names socat", err)
	}
	if v := need(); v.failed+v.skipped != "" {
		t.Errorf("no need: %+v, want to go on", v)
	}
}

// With -short, what takes long is skipped, whatever is required, and only that.
func TestShort(t *testing.T) {
	long := func(v *verdict) { labtest.Long(v) }
	short := flag.Lookup("test.short").Value
	defer short.Set(short.String())
	t.Setenv("GOIPIP_REQUIRE", "all")
	t.Setenv("PATH", t.TempDir()) // no guest here, and no Go to install a module with

	short.Set("true")
	for what, v := range map[string]*verdict{"uml": need("uml"), "wireguard-go": need("wireguard-go"), "Long": try(long)} {
		if v.skipped == "" || v.failed != "" {
			t.Errorf("%s with -short: %+v, want a skip", what, v)
		}
	}
	if v := need("root"); v.skipped != "" {
		t.Errorf("root with -short: %+v, want to go on", v)
	}
	short.Set("false")
	if v := try(long); v.skipped+v.failed != "" {
		t.Errorf("Long without -short: %+v, want to go on", v)
	}
}

func TestNew(t *testing.T) {
	var p *netlab.Process
	t.Run("lab", func(t *testing.T) {
		host, err := labtest.New(t).Host("h")
		if err != nil {
			t.Fatal(err)
		}
		if p, err = host.Start(exec.Command("sleep", "1000")); err != nil {
			t.Fatal(err)
		}
	})
	if p == nil {
		t.Skip("there was no lab") // for a reason that the inner test told
	}
	if err := p.Signal(os.Interrupt); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v after its test: %v, want %v", p, err, os.ErrProcessDone)
	}
}

func TestWaitFor(t *testing.T) {
	asked := 0
	labtest.WaitFor(t, "the third time", func() bool { asked++; return asked == 3 })
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestContext(t *testing.T) {
	ctx := labtest.Context(t)
	if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
		t.Errorf("a context without deadline, or one that has ended: %v", ctx.Err())
	}
}

func TestBuild(t *testing.T) {
	for name, build := range map[string]func() string{
		"BuildGoipip": func() string { return labtest.BuildGoipip(t) },
		"Build":       func() string { return labtest.Build(t, "goipip/cmd/goipip") },
	} {
		built, err := os.Stat(build())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := os.Stat(build()); err != nil || again.ModTime() != built.ModTime() {
			t.Errorf("%s builds twice: %v, %v, %v", name, built.ModTime(), again.ModTime(), err)
		}
	}
	if labtest.BuildGoipip(t) == labtest.Build(t, "goipip/cmd/goipip") {
		t.Error("one binary is written over the other")
	}
}

func TestBuildWireguard(t *testing.T) {
	if _, err := os.Stat(labtest.BuildWireguard(t)); err != nil {
		t.Fatal(err)
	}
}
