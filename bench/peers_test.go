package bench

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// peer is a way for packets between the inner addresses of two hosts.
type peer struct {
	name string
	// start makes near's end of it. It returns the process that is this end, whose
	// CPU time counts, or nil where the kernel is. What start needs beyond root
	// and TUN it asks for itself ([labtest.Need]).
	start func(tb testing.TB, near, far *site) *netlab.Process
}

// peers are what BenchmarkTunnel compares.
var peers = []peer{
	{"none", startNone},
	{"naive", startNaive},
	{"goipip", startGoipip},
}

// startNone leads the inner addresses straight over the cable.
func startNone(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	if err := near.host.AddPeer(cable, near.inner.String(), far.inner.String()); err != nil {
		tb.Fatal(err)
	}
	return nil
}

// startNaive runs the program in the directory naive.
func startNaive(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	p := startProgram(tb, near, exec.Command(buildNaive(tb),
		"-name", link, "-local", near.outer.String(), "-remote", far.outer.String()))
	labtest.WaitFor(tb, "naive's link", func() bool {
		_, err := near.host.Netlink().LinkByName(link)
		return err == nil
	})
	if err := errors.Join(
		near.host.SetMTU(link, linkMTU),
		near.host.AddPeer(link, near.inner.String(), far.inner.String()),
		near.host.SetUp(link),
	); err != nil {
		tb.Fatal(err)
	}
	return p
}

// naive is the binary of the program in the directory naive.
var naive struct {
	once sync.Once
	path string
	err  error
}

// buildNaive returns the path of naive, which it builds once, beside goipip: that
// directory is removed by labtest.Main.
func buildNaive(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Dir(labtest.BuildGoipip(tb))
	naive.once.Do(func() {
		naive.path = filepath.Join(dir, "naive")
		if out, err := exec.Command("go", "build", "-o", naive.path, "goipip/bench/naive").CombinedOutput(); err != nil {
			naive.err = fmt.Errorf("build naive: %w: %s", err, out)
		}
	})
	if naive.err != nil {
		tb.Fatal(naive.err)
	}
	return naive.path
}

// startGoipip runs goipip with its defaults.
func startGoipip(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	return startProgram(tb, near, exec.Command(labtest.BuildGoipip(tb), "-log-level", "warn",
		"-name", link, "-local", near.outer.String(), "-remote", far.outer.String(),
		"-address", near.inner.String(), "-peer", far.inner.String()))
}

// startProgram starts cmd on s. What it says shows in the test's log.
func startProgram(tb testing.TB, s *site, cmd *exec.Cmd) *netlab.Process {
	tb.Helper()
	cmd.Stderr = tb.Output()
	p, err := s.host.Start(cmd)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}
