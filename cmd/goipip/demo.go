//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"goipip/internal/netlab"

	"github.com/spf13/cobra"
)

// demoTimeout bounds the whole demo, which takes a few seconds.
const demoTimeout = time.Minute

// transferSize is what the demo sends through the tunnel, in bytes.
const transferSize = 256 << 20

func newDemoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show a tunnel between two hosts that exist for the moment only",
		Long: `Build two hosts with a router between them, out of network namespaces; run a
tunnel from one to the other; ping, capture and measure through it; and remove
everything. Nothing outside these namespaces is touched. Root is not needed where
the system allows user namespaces.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needDemoDescriptors(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), demoTimeout)
			defer cancel()
			return runDemo(ctx, cmd.OutOrStdout())
		},
	}
}

// userNamespaceEnv marks the demo that became root in a user namespace of its
// own.
const userNamespaceEnv = "GOIPIP_DEMO_USERNS"

// runDemo runs the demo here if it may, and in a user namespace otherwise.
func runDemo(ctx context.Context, out io.Writer) (err error) {
	lab, err := netlab.New()
	if errors.Is(err, os.ErrPermission) && os.Getenv(userNamespaceEnv) == "" {
		if again, ok := demoInUserNamespace(ctx, out); ok {
			return again
		}
	}
	if err != nil {
		return err
	}
	d := &demo{lab: lab, out: out}
	defer func() { err = errors.Join(err, lab.Close()) }()
	return d.run(ctx)
}

// demoInUserNamespace runs the demo as root of a new user namespace. It reports
// false if the system does not allow that.
func demoInUserNamespace(ctx context.Context, out io.Writer) (err error, ok bool) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "demo")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Env = append(os.Environ(), userNamespaceEnv+"=1")
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		return nil, false
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		err = statusError(exit.ExitCode())
	}
	return err, true
}

// demo is Lab 2: two hosts, a router, a tunnel.
type demo struct {
	lab *netlab.Lab
	out io.Writer
}

// site is one end of the tunnel.
type site struct {
	host         *netlab.Host
	link         string
	outer, inner netip.Addr
	process      *netlab.Process
}

func (d *demo) run(ctx context.Context) error {
	ns01, ns02, router, err := d.lab.Lab2()
	if err != nil {
		return err
	}
	a := &site{host: ns01, link: "tun01", outer: netip.MustParseAddr("192.168.6.101"), inner: netip.MustParseAddr("172.56.1.101")}
	b := &site{host: ns02, link: "tun02", outer: netip.MustParseAddr("192.168.8.101"), inner: netip.MustParseAddr("172.56.2.101")}

	d.say("Two hosts with a router between them, in network namespaces of their own:\n\n" +
		"    ns01 veth01 ─────────────── veth01_p router veth02_p ─────────────── veth02 ns02\n" +
		"         192.168.6.101/24     192.168.6.1    192.168.8.1     192.168.8.101/24\n")
	d.say("A tunnel from one to the other. goipip runs in the foreground, here with an & behind it:\n")
	for _, end := range [][2]*site{{a, b}, {b, a}} {
		if err := d.startTunnel(ctx, end[0], end[1]); err != nil {
			return err
		}
	}
	d.say("\nTo ip(8) it is a link as any other:\n")
	for _, end := range [][2]*site{{a, b}, {b, a}} {
		d.command(end[0].host, "ip addr show dev %s", end[0].link)
		text, err := showLink(end[0], end[1])
		if err != nil {
			return err
		}
		d.say("%s", text)
	}
	d.say("\nPackets go through:\n")
	capture, err := router.Capture("veth01_p")
	if err != nil {
		return err
	}
	for _, end := range [][2]*site{{a, b}, {b, a}} {
		if err := d.ping(ctx, end[0], end[1]); err != nil {
			return err
		}
	}
	d.say("\nOn the way they are IPv4 in IPv4. The router saw, once layer by layer:\n")
	if err := d.showPacket(ctx, router, capture, a, b); err != nil {
		return err
	}
	d.say("\nA transfer over one TCP connection:\n")
	if err := d.transfer(ctx, a, b); err != nil {
		return err
	}
	d.say("\nDeleting the link ends its goipip; so do SIGTERM and Ctrl-C:\n")
	for _, s := range []*site{a, b} {
		d.command(s.host, "ip link delete %s", s.link)
		if err := s.host.DeleteLink(s.link); err != nil {
			return err
		}
		if err := s.process.Wait(ctx); err != nil {
			return err
		}
	}
	d.say("\nThat was all. The namespaces go with this program.")
	return nil
}

func (d *demo) startTunnel(ctx context.Context, near, far *site) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"-name", near.link, "-local", near.outer.String(), "-remote", far.outer.String()}
	d.command(near.host, "goipip %s &", strings.Join(args, " "))
	cmd := exec.Command(self, args...)
	log := &lineWriter{out: d.out, first: make(chan struct{})}
	cmd.Stderr = log
	if near.process, err = near.host.Start(cmd); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- near.process.Wait(ctx) }()
	select {
	case <-log.first:
	case err := <-ended:
		return err
	}
	if _, err := near.host.Netlink().LinkByName(near.link); err != nil {
		return fmt.Errorf("the tunnel in %s is not up: goipip says why above", near.host.Name)
	}
	d.command(near.host, "ip addr add %s peer %s dev %s", near.inner, far.inner, near.link)
	return near.host.AddPeer(near.link, near.inner.String(), far.inner.String())
}

func (d *demo) ping(ctx context.Context, near, far *site) error {
	const count = 3
	d.command(near.host, "ping -c %d %s", count, far.inner)
	result, err := near.host.Ping(ctx, far.inner, netlab.PingOptions{
		Count:    count,
		Interval: 200 * time.Millisecond,
		Reply: func(r netlab.Reply) {
			d.say("%d bytes from %s: icmp_seq=%d ttl=%d time=%.3f ms",
				r.Bytes, far.inner, r.Seq, r.TTL, float64(r.RTT)/float64(time.Millisecond))
		},
	})
	if err != nil {
		return err
	}
	d.say("%s", result)
	if result.Received != count {
		return fmt.Errorf("ping %s: %d of %d replies", far.inner, result.Received, count)
	}
	return nil
}

func (d *demo) showPacket(ctx context.Context, router *netlab.Host, capture *netlab.Capture, near, far *site) error {
	defer capture.Close()
	want := fmt.Sprintf("IP %s > %s: IP %s > %s: ICMP echo request", near.outer, far.outer, near.inner, far.inner)
	d.command(router, "tcpdump -n -c 1 -i veth01_p 'ip proto 4'")
	p, err := capture.Wait(ctx, func(p netlab.Captured) bool { return strings.HasPrefix(p.String(), want) })
	if err != nil {
		return err
	}
	d.say("%s", p)
	for i, layer := range p.Layers() {
		d.say("%s%s", strings.Repeat("  ", i+1), layer)
	}
	return nil
}

func (d *demo) transfer(ctx context.Context, near, far *site) error {
	result, err := netlab.Transfer(ctx, near.host, far.host, netip.AddrPortFrom(far.inner, 0), transferSize)
	if err != nil {
		return err
	}
	d.say("%d MiB from %s to %s in %.2f s, %.2f Gbit/s, and the SHA-256 of both ends is the same",
		transferSize>>20, near.inner, far.inner, result.Duration.Seconds(),
		float64(result.Bytes)*8/1e9/result.Duration.Seconds())
	return nil
}

// command shows a command line as it would be typed.
func (d *demo) command(h *netlab.Host, format string, args ...any) {
	d.say("%s# %s", h.Name, fmt.Sprintf(format, args...))
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, format+"\n", args...)
}

// showLink is what ip(8) shows of near's link, or the same in short on a machine
// without it.
func showLink(near, far *site) (string, error) {
	if _, err := exec.LookPath("ip"); err == nil {
		out, err := near.host.Output("ip", "addr", "show", "dev", near.link)
		return strings.TrimSuffix(out, "\n"), err
	}
	link, err := near.host.Netlink().LinkByName(near.link)
	if err != nil {
		return "", err
	}
	a := link.Attrs()
	return fmt.Sprintf("%d: %s: <%s> mtu %d qlen %d\n    link/%s\n    inet %s peer %s/32\n(in short, because ip(8) is not installed here)",
		a.Index, a.Name, strings.ToUpper(strings.ReplaceAll(a.Flags.String(), "|", ",")), a.MTU, a.TxQLen,
		a.EncapType, near.inner, far.inner), nil
}

// lineWriter passes on what a process logs, and tells of its first line.
type lineWriter struct {
	out   io.Writer
	first chan struct{}
	told  bool
}

func (w *lineWriter) Write(b []byte) (int, error) {
	n, err := w.out.Write(b)
	if !w.told {
		w.told = true
		close(w.first)
	}
	return n, err
}
