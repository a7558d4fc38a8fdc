//go:build linux

package main

import (
	"net"
	"slices"
	"strings"

	"goipip/internal/daemon/config"

	"github.com/spf13/cobra"
)

// completeFlags has the shell complete the values of a tunnel's flags.
func completeFlags(cmd *cobra.Command) {
	values := map[string][]string{
		"local":      {"any"},
		"ttl":        {"inherit"},
		"tos":        {"inherit"},
		"icmp":       {"linux", "rfc2003"},
		"offload":    {"auto", "off"},
		"tx":         {"auto", "raw", "packet"},
		"fast-path":  {"off", "auto", "on"},
		"log-level":  config.LogLevels,
		"log-format": config.LogFormats,
	}
	for name, words := range values {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // it exists
	}
	for _, name := range []string{"remote", "name", "address", "peer", "mtu", "fwmark", "queues", "workers"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	_ = cmd.RegisterFlagCompletionFunc("dev", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return linkNames(), cobra.ShellCompDirectiveNoFileComp
	})
}

// completeWords returns the words that may follow args in a command of ip tunnel or ip link.
// The function tunnels lists names of tunnels.
func completeWords(v verb, args []string, tunnels func() []string) []string {
	last := ""
	if len(args) > 0 {
		last = args[len(args)-1]
	}
	names := len(args) == 0 || len(args) == 1 && last == "dev" && strings.HasPrefix(v.args, "[dev] NAME")
	if names && v.named {
		return append(slices.Clone(v.words), tunnels()...)
	}
	switch last {
	case "dev":
		return linkNames()
	case "mode", "type":
		return []string{"ipip"}
	case "local", "remote":
		return []string{"any"}
	case "ttl", "tos":
		return []string{"inherit"}
	case "mtu", "fwmark":
		return nil
	}
	return slices.DeleteFunc(slices.Clone(v.words), func(w string) bool {
		return slices.Contains(args, w) || w == "ipip" || w == "any" || w == "inherit"
	})
}

// linkNames lists the links of this network namespace.
func linkNames() (names []string) {
	links, _ := net.Interfaces() // without an answer there is nothing to complete
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}
