package bench

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// peer is a way for packets between the inner addresses of two hosts.
type peer struct {
	name  string
	needs []string // beyond those of every network, see [labtest.Need]
	ends  [2]end   // where the loads send from, and where they send to
}

func (p peer) allNeeds() []string { return slices.Concat([]string{"root", "tun"}, p.needs) }

// end makes near's end of a peer. It returns the process that is this end, whose
// CPU time counts, or nil where the kernel is.
type end func(tb testing.TB, near, far *site) *netlab.Process

// peers are what BenchmarkTunnel compares.
var peers = []peer{
	{"none", nil, both(startNone)},
	{"naive", nil, both(startNaive)},
	{"socat", []string{"socat"}, both(startSocat)},
	{"wireguard", []string{"wireguard-go"}, both(startWireguard)},
	{"kernel", []string{"bpf"}, both(startKernel)},
	{"kernel-goipip", []string{"bpf"}, [2]end{startKernel, startGoipip}},
	{"goipip", nil, both(startGoipip)},
	{"goipip-fast", []string{"bpf"}, [2]end{startGoipip, startFast}},
	{"fast-goipip", []string{"bpf"}, [2]end{startFast, startGoipip}},
	{"fast", []string{"bpf"}, both(startFast)},
}

func both(e end) [2]end { return [2]end{e, e} }

// startNone leads the inner addresses straight over the cable.
func startNone(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	if err := near.host.AddPeer(cable, near.inner.String(), far.inner.String()); err != nil {
		tb.Fatal(err)
	}
	return nil
}

// startKernel lets the kernel do what its ipip module does. Superpackets pass
// whole, so that it cuts and merges nothing.
func startKernel(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	if err := near.host.AttachIPIP(netlab.KernelIPIP{
		Dev:   cable,
		Local: near.outer, Remote: far.outer,
		InnerLocal: near.inner, InnerRemote: far.inner,
	}); err != nil {
		tb.Fatal(err)
	}
	return nil
}

// startGoipip runs goipip with its defaults.
func startGoipip(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	return startProgram(tb, near, command(tb, near, far))
}

// startFast runs goipip with its fast path in the kernel.
func startFast(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	return startProgram(tb, near, command(tb, near, far, "-fast-path", "on"))
}

func command(tb testing.TB, near, far *site, flags ...string) *exec.Cmd {
	tb.Helper()
	return exec.Command(labtest.BuildGoipip(tb), append(flags, "-log-level", "warn",
		"-name", link, "-local", near.outer.String(), "-remote", far.outer.String(),
		"-address", near.inner.String(), "-peer", far.inner.String())...)
}

// startNaive runs the program in the directory naive.
func startNaive(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	p := startProgram(tb, near, exec.Command(labtest.Build(tb, "goipip/bench/naive"),
		"-name", link, "-local", near.outer.String(), "-remote", far.outer.String()))
	setUp(tb, near, far, link, linkMTU)
	return p
}

// startSocat joins a TUN to a raw socket, by a read and a write for each packet.
func startSocat(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	p := startProgram(tb, near, exec.Command("socat",
		"TUN,tun-type=tun,iff-no-pi,tun-name="+link,
		fmt.Sprintf("IP4-SENDTO:%v:%d,bind=%v", far.outer, packet.ProtoIPIP, near.outer)))
	setUp(tb, near, far, link, linkMTU)
	return p
}

// setUp waits for a program's link, and does for it what goipip does for its own.
func setUp(tb testing.TB, near, far *site, name string, mtu int) {
	tb.Helper()
	labtest.WaitFor(tb, "the link "+name, func() bool {
		_, err := near.host.Netlink().LinkByName(name)
		return err == nil
	})
	if err := errors.Join(
		near.host.SetMTU(name, mtu),
		near.host.AddPeer(name, near.inner.String(), far.inner.String()),
		near.host.SetUp(name),
	); err != nil {
		tb.Fatal(err)
	}
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
