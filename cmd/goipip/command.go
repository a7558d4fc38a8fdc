//go:build linux

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const example = `  # on 10.90.6.238
  goipip -local 10.90.6.238 -remote 192.168.1.129 -name tun01 -address 172.66.1.101 -peer 172.66.2.101
  # on 192.168.1.129
  goipip -local 192.168.1.129 -remote 10.90.6.238 -name tun01 -address 172.66.2.101 -peer 172.66.1.101

  # in the words of ip-tunnel(8), in the background
  goipip tunnel add tun01 mode ipip remote 192.168.1.129 local 10.90.6.238`

// newCommand is the command line: the tunnel itself, and what stands beside it. The
// flags go to o.
func newCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "goipip --local ADDRESS --remote ADDRESS",
		Short: "The Linux ipip tunnel (RFC 2003) in user space",
		Long: `goipip makes a link that carries IPv4 packets to another host inside IPv4
packets (RFC 2003, IP protocol 4), as the kernel's ipip module does, and runs
until it gets SIGINT or SIGTERM or the link is deleted. Addresses, routes, MTU
and so on are set with ip(8) as for any link. SIGUSR1 logs the counters. SIGHUP,
as when a terminal closes, does not end it.`,
		Example:       example,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.runTunnel(cmd.Context())
		},
	}
	o.register(cmd.Flags())
	cmd.PersistentFlags().StringVar(&o.control, "control", "", "path of the control socket, in front of the command (default: that of the network namespace, below /run/goipip)")
	completeFlags(cmd)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	cmd.AddCommand(
		newTunnelCommand(o),
		newLinkCommand(o),
		newShowCommand(o.statuses),
		newTopCommand(o.statuses),
		newRunCommand(o),
		newCheckCommand(),
		newCaptureCommand(o),
		newDoctorCommand(o),
		newDemoCommand(),
		newVersionCommand(),
		newDaemonCommand(o),
	)
	return cmd
}

// flagError says a wrong value as Config.FieldErrors does: --mtu 67: must be …
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	value := invalid.GetValue()
	if value == "" || strings.ContainsAny(value, " \t\n") {
		value = strconv.Quote(value)
	}
	flag, why := invalid.GetFlag(), errors.Unwrap(invalid)
	if errors.As(why, new(*strconv.NumError)) { // of pflag
		why = errors.New("must be a whole number")
		if flag.Value.Type() == "bool" {
			why = errors.New("must be true or false")
		}
	}
	name := "--" + flag.Name
	if flag.Shorthand != "" {
		name = "-" + flag.Shorthand + ", " + name
	}
	return fmt.Errorf("%s %s: %w", name, value, why)
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{errors.New("unknown word " + strings.Join(args, " ") + ": options begin with a dash")}
	}
	return nil
}

// doubleDashes allows long flags with one dash, as -local, which pflag would take for
// -l -o -c -a -l. They begin with two letters: -c10 is -c 10.
func doubleDashes(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		if a == "--" {
			copy(out[i:], args[i:])
			break
		}
		if len(a) > 2 && a[0] == '-' && isLetter(a[1]) && isLetter(a[2]) {
			a = "-" + a
		}
		out[i] = a
	}
	return out
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
