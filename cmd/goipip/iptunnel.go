//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newTunnelCommand is goipip tunnel, in the words of ip-tunnel(8).
func newTunnelCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tunnel",
		Short: "Make and show tunnels in the words of ip-tunnel(8)",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showTunnels(backend{o}, cmd.OutOrStdout())
		},
	}
	cmd.AddCommand(newTunnelAddCommand(o), &cobra.Command{
		Use:     "show",
		Aliases: []string{"list", "lst"},
		Short:   "Show the tunnels of this network namespace",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showTunnels(backend{o}, cmd.OutOrStdout())
		},
	})
	return cmd
}

func showTunnels(b backend, out io.Writer) error {
	if err := needDescriptors("a look at the links", processDescriptors); err != nil {
		return err
	}
	tunnels, err := b.list(false)
	for _, t := range tunnels {
		fmt.Fprintln(out, t.Config.Name)
	}
	return err
}

func newTunnelAddCommand(root *options) *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME [mode ipip] remote ADDRESS local ADDRESS [ttl TTL] [tos TOS] [[no]pmtudisc] [dev DEVICE]",
		Short: "Make a tunnel in the background, in the words of ip-tunnel(8)",
		Long: `Make a tunnel in the words of ip-tunnel(8). The command returns when the link is
up. A process in the background then carries its packets, until the link or its
network namespace is deleted (ip link delete NAME) or it gets SIGTERM; it logs to
syslog. It keeps nothing open that the caller has open, such as a lock.`,
		DisableFlagParsing: true, // ip(8) has words, no flags
		RunE: func(cmd *cobra.Command, words []string) error {
			if len(words) == 1 && (words[0] == "--help" || words[0] == "-h") {
				return cmd.Help()
			}
			o, err := parseTunnelWords(words)
			if err != nil {
				return usageError{err}
			}
			cfg, err := o.config()
			if err != nil {
				return err
			}
			if err := needTunnelDescriptors(cfg.Queues, cfg.Queues); err != nil {
				return err
			}
			cfg.Down = true
			return backend{root}.Add(cmd.Context(), cfg)
		},
	}
}

// parseTunnelWords fills the same options as the flags do.
func parseTunnelWords(words []string) (*options, error) {
	o := &options{}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.register(flags)

	for i := 0; i < len(words); i++ {
		word, flag := words[i], words[i]
		switch word {
		case "nopmtudisc":
			o.tunnel.NoPMTUDisc = true
			continue
		case "pmtudisc":
			o.tunnel.NoPMTUDisc = false
			continue
		case "name", "remote", "local", "ttl", "tos", "dev", "mode":
		case "hoplimit":
			flag = "ttl"
		case "dsfield", "tclass":
			flag = "tos"
		default:
			if i > 0 {
				return nil, fmt.Errorf("unknown word %q: see goipip tunnel add --help", word)
			}
			o.tunnel.Name = word // the name may stand alone, and first
			continue
		}
		if i++; i == len(words) {
			return nil, fmt.Errorf("%s needs a value", word)
		}
		if word == "mode" {
			if m := strings.ToLower(words[i]); m != "ipip" && m != "ip/ip" {
				return nil, fmt.Errorf("mode %s: goipip makes ipip tunnels only", words[i])
			}
			continue
		}
		if err := flags.Set(flag, words[i]); err != nil {
			return nil, err
		}
	}
	return o, nil
}
