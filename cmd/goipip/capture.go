//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"syscall"
	"time"

	"goipip/internal/capture"
	"goipip/internal/daemon/control"

	"github.com/spf13/cobra"
)

// The sides of a tunnel.
const (
	sideInner = "inner"
	sideOuter = "outer"
)

// captureOptions is what the words and flags of goipip capture say.
type captureOptions struct {
	backend backend
	name    string // of the tunnel
	side    string
	drops   bool
	count   int    // 0 for no limit
	file    string // empty for lines on standard output, "-" for a file there
	filter  string
}

func newCaptureCommand(o *options) *cobra.Command {
	c := captureOptions{backend: backend{o}}
	cmd := &cobra.Command{
		Use:   "capture NAME [FILTER]",
		Short: "Capture a tunnel's packets, or those that it drops, and why",
		Long: `Capture the packets of the tunnel NAME, and print a line for each as tcpdump does,
or write them to a file (pcapng). FILTER is an expression in tcpdump's language
(pcap-filter(7)); tcpdump compiles it, and prints. Ctrl-C ends a capture, and the
end of the tunnel does.

--side inner is what passes the tunnel's link. --side outer is what passes the
devices below: packets of protocol 4 between the tunnel's ends, and ICMP errors
about them. With --drops, it is only what goipip drops, in both directions, each
packet with the reason, the rule (docs/rules.md) and the tunnel as its comment:
without an outer header, or with --side outer, those that have one with it.`,
		Example: `  goipip capture tun01
  goipip capture tun01 --side outer -w - | wireshark -k -i -
  goipip capture tun01 --drops -c 10 icmp or tcp port 22`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("capture needs the NAME of a tunnel (goipip show)")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c.name, c.filter = args[0], strings.Join(args[1:], " ")
			defer secondSignalEnds(cmd.Context())()
			err := c.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
			if errors.Is(err, syscall.EPIPE) {
				// A reader such as head(1) has enough. Most programs die of this signal.
				return statusError(128 + int(syscall.SIGPIPE))
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeNames(cmd.Context(), o.statuses, prefix), cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	sides := []string{sideInner, sideOuter}
	f.Var(newEnum(&c.side, sides), "side", "inner: packets as they are in the tunnel, or outer: as they are between its ends")
	_ = cmd.RegisterFlagCompletionFunc("side", cobra.FixedCompletions(sides, cobra.ShellCompDirectiveNoFileComp))
	f.BoolVar(&c.drops, "drops", false, "only packets that goipip drops, with the reason")
	f.VarP(&numberValue{p: &c.count, least: 1, most: math.MaxInt32}, "count", "c", "end after so many packets")
	f.StringVarP(&c.file, "write", "w", "", "write packets to a `file` in place of printing them; - is standard output")
	_ = cmd.MarkFlagFilename("write")
	return cmd
}

// source is where packets come from.
type source interface {
	Interfaces() []string // of its packets
	// Run sends packets until ctx is done or the tunnel ends.
	Run(ctx context.Context, packets chan<- capture.Packet) error
	// Lost returns how many packets are missing, once Run has returned.
	Lost() uint64
	Close()
}

// sink is where packets go.
type sink interface {
	Write(capture.Packet) error
	Flush() error
	Close() error
}

// run captures until ctx is done, the tunnel ends, or there are enough packets.
func (c *captureOptions) run(ctx context.Context, out, stderr io.Writer) error {
	client, t, err := c.backend.find(c.name)
	if err != nil {
		return err
	}
	defer client.Close()
	filter, err := capture.Compile(ctx, c.filter)
	if err != nil {
		return err
	}
	from, err := c.open(ctx, client, t, filter)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := c.create(out, capture.File{Interfaces: from.Interfaces(), Description: c.describe(), Filter: c.filter})
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "capturing %s; Ctrl-C ends\n", c.describe())
	captured, err := c.copy(ctx, from, to)
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "%d packets captured, %d lost\n", captured, from.Lost())
	return err
}

func (c *captureOptions) describe() string {
	what := c.side + " packets of tunnel " + c.name
	if c.drops {
		what += " that goipip drops"
	}
	return what
}

// open begins the capture.
func (c *captureOptions) open(ctx context.Context, client *control.Client, t control.TunnelStatus, filter capture.Filter) (source, error) {
	if t.Index == 0 {
		return nil, fmt.Errorf("tunnel %q has no link yet: it %s", c.name, t.Trouble)
	}
	link := capture.Link{Name: t.Config.Name, Index: t.Index}
	if t.Away {
		link.Index = 0
	}
	switch {
	case c.drops:
		return newDropSource(client, c.name, c.side == sideOuter, filter)
	case c.side == sideOuter:
		return capture.Outer(link, capture.Ends{Local: t.Config.Local, Remote: t.Config.Remote}, t.Underlay.Device, filter)
	}
	if t.Away {
		return nil, fmt.Errorf("the link %s is in another network namespace: capture with --side outer or --drops here, or with tcpdump there", link.Name)
	}
	live, err := capture.Inner(link, filter)
	if err != nil {
		return nil, err
	}
	return live, awaitSlowPath(ctx, client, c.name)
}

// slowPathTimeout bounds the wait for a fast path to leave its packets to the link.
const slowPathTimeout = 2 * time.Second

// awaitSlowPath waits until no fast path has packets pass the link unseen.
func awaitSlowPath(ctx context.Context, client *control.Client, name string) error {
	for end := time.Now().Add(slowPathTimeout); ; {
		var s control.Status
		if err := client.Call(control.MethodStatus, control.NameParams{Name: name}, &s); err != nil {
			return err
		}
		fast := s.Tunnels[0].FastPath
		if fast == nil || !fast.Used || ctx.Err() != nil {
			return nil
		}
		if time.Now().After(end) {
			return errors.New("the fast path still carries packets past the link, where they cannot be captured: try --side outer, or turn it off (fast-path)")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// create opens what the packets go to.
func (c *captureOptions) create(out io.Writer, f capture.File) (sink, error) {
	switch c.file {
	case "":
		return capture.NewPrinter(out, f)
	case "-":
		if _, ok := terminalOf(out); ok {
			return nil, errors.New("standard output is a terminal: redirect it, or do without -w to read packets there")
		}
		return newFileSink(out, func() error { return nil }, f)
	}
	file, err := os.OpenFile(c.file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return newFileSink(file, file.Close, f)
}

// fileSink is a file of packets.
type fileSink struct {
	*capture.Writer
	close func() error
}

func newFileSink(to io.Writer, closeFile func() error, f capture.File) (sink, error) {
	w, err := capture.NewWriter(to, f)
	if err != nil {
		return nil, errors.Join(err, closeFile())
	}
	return fileSink{w, closeFile}, nil
}

func (f fileSink) Close() error { return errors.Join(f.Flush(), f.close()) }

// packetsQueued is how many packets wait to be written. Those that a tunnel drops come in
// bursts, and are lost if there are more.
const packetsQueued = 4096

// copy takes packets from one to the other, and returns how many.
func (c *captureOptions) copy(ctx context.Context, from source, to sink) (captured int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	packets := make(chan capture.Packet, packetsQueued)
	var fromErr error
	go func() {
		defer close(packets)
		fromErr = from.Run(ctx, packets)
	}()
	for p := range packets {
		if err != nil || captured == c.count && c.count > 0 {
			continue // until the source has ended
		}
		err = to.Write(p)
		captured++
		if err == nil && len(packets) == 0 {
			err = to.Flush()
		}
		if err != nil || captured == c.count {
			cancel()
		}
	}
	return captured, errors.Join(err, fromErr)
}
