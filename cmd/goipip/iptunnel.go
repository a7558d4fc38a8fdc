//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"goipip/internal/iproute"
	"goipip/internal/tunnel"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// ipWords recognizes a command line in the words of ip(8), behind an option --control. One
// that asks for help is none.
func (o *options) ipWords(args []string) (c iproute.Command, ok bool) {
	path := ""
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		name, value, assigned := strings.Cut(args[0], "=")
		if strings.TrimLeft(name, "-") == "control" {
			args = args[1:]
			if !assigned && len(args) > 0 {
				value, args = args[0], args[1:]
			}
			path = value
		}
	}
	if c, ok = iproute.Split(args); !ok {
		return c, false
	}
	if last := args[len(args)-1]; last == "--help" || last == "-h" {
		return c, false
	}
	o.control = path
	return c, true
}

// runWords carries out a command line in the words of ip(8).
func (o *options) runWords(ctx context.Context, c iproute.Command, out io.Writer) error {
	if err := needTunnelDescriptors(tunnel.Config{Queues: tunnel.DefaultQueues()}, tunnel.DefaultQueues()); err != nil {
		return err
	}
	if _, terminal := terminalOf(out); c.Options.Color == iproute.ColorAuto && !terminal {
		c.Options.Color = iproute.ColorNever
	}
	if name := c.Options.Netns; name != "" {
		if err := enterNamespace(name); err != nil {
			return fmt.Errorf("network namespace %q: %w", name, err)
		}
	}
	status, err := c.Run(ctx, backend{o}, out, os.Stderr)
	if status != 0 && err == nil {
		return statusError(status)
	}
	return err
}

// enterNamespace has this goroutine, and the processes that it starts, work in a network
// namespace of ip-netns(8). It is for the rest of the goroutine.
func enterNamespace(name string) error {
	path := name
	if !strings.Contains(name, "/") {
		path = filepath.Join("/run/netns", name)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// verb is a command of ip tunnel or ip link.
type verb struct {
	name, args, short, long string
	aliases                 []string
	words                   []string // that complete a command line
	named                   bool     // a name of a tunnel completes it too
}

const parametersOfTunnel = "[mode ipip] [remote ADDRESS] [local ADDRESS] [ttl TTL] [tos TOS] [[no]pmtudisc] [dev DEVICE]"

var tunnelWords = []string{"mode", "ipip", "remote", "local", "ttl", "tos", "inherit", "pmtudisc", "nopmtudisc", "dev"}

// newTunnelCommand is goipip tunnel, in the words of ip-tunnel(8).
func newTunnelCommand(o *options) *cobra.Command {
	cmd := o.wordsCommand(verb{
		name: "tunnel", args: "[COMMAND]", aliases: []string{"tunl"},
		short: "Make and show tunnels in the words of ip-tunnel(8)",
		long: `The words of ip-tunnel(8), as they are: words may be shortened, options of ip(8) such
as -s, -o or -j stand before "tunnel", and output, errors and exit status are those of ip. A
new tunnel's link is down.

The first tunnel starts a daemon in the background, which carries the packets of all of them
and ends with the last one, or with its network namespace. It logs to syslog.`,
	})
	for _, v := range []verb{
		{name: "add", args: "NAME mode ipip " + parametersOfTunnel[len("[mode ipip] "):], short: "Make a tunnel, whose link is down", words: tunnelWords},
		{name: "change", args: "NAME " + parametersOfTunnel, short: "Change a tunnel while packets pass", words: tunnelWords, named: true},
		{name: "delete", args: "NAME", aliases: []string{"del"}, short: "Remove a tunnel", named: true},
		{name: "show", args: "[NAME] " + parametersOfTunnel, aliases: []string{"list", "lst"}, short: "Show tunnels", words: tunnelWords, named: true},
	} {
		cmd.AddCommand(o.wordsCommand(v))
	}
	return cmd
}

// newLinkCommand is goipip link, in the words of ip-link(8).
func newLinkCommand(o *options) *cobra.Command {
	const parameters = "type ipip [remote ADDRESS] [local ADDRESS] [ttl TTL] [tos TOS] [[no]pmtudisc] [dev DEVICE] [fwmark MARK] [mode {ipip | any}]"
	words := append(slices.Clone(tunnelWords), "type", "fwmark", "any")
	cmd := o.wordsCommand(verb{
		name: "link", args: "COMMAND",
		short: "Make tunnels in the words of ip-link(8)",
		long: `The words of ip-link(8) about links of type ipip. All else about links is ip's, also for
those of goipip.`,
	})
	for _, v := range []verb{
		{name: "add", args: "[dev] NAME [mtu MTU] [up | down] " + parameters, short: "Make a tunnel", words: append(words, "mtu", "up")},
		{name: "change", args: "[dev] NAME " + parameters, aliases: []string{"set"}, short: "Change a tunnel while packets pass", words: words, named: true},
		{name: "delete", args: "[dev] NAME [type ipip]", aliases: []string{"del"}, short: "Remove a tunnel", named: true},
	} {
		cmd.AddCommand(o.wordsCommand(v))
	}
	return cmd
}

// wordsCommand describes words of ip(8), for help and completion: package iproute reads them.
func (o *options) wordsCommand(v verb) *cobra.Command {
	return &cobra.Command{
		Use:                v.name + " " + v.args,
		Aliases:            v.aliases,
		Short:              v.short,
		Long:               v.long,
		DisableFlagParsing: true, // ip has words, no flags

		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			tunnels := func() (names []string) {
				tunnels, _ := backend{o}.List(cmd.Context(), false)
				for _, t := range tunnels {
					names = append(names, t.Config.Name)
				}
				return names
			}
			return completeWords(v, args, tunnels), cobra.ShellCompDirectiveNoFileComp
		},
	}
}
