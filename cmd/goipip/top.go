//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"goipip/internal/show"
	"goipip/internal/top"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The interval of goipip top.
const (
	topInterval = time.Second
	minInterval = 100 * time.Millisecond
	maxInterval = time.Minute // what a sparkline has
)

func newTopCommand(fetch fetchStatuses) *cobra.Command {
	o := top.Options{Interval: topInterval}
	cmd := &cobra.Command{
		Use:   "top [NAME...]",
		Short: "Watch tunnels live: rates, drops, path, the last minute",
		Long: `Show all tunnels of this network namespace, or those called NAME, in a window that
is redrawn every second: state, rates, packets dropped and why, path, path MTU,
when the last packet was received, and the rate of the last minute. Keys select
and open a tunnel, sort, and filter; ? lists them. See docs/top.md.

It needs a terminal that can move its cursor. For others, and for scripts, there
is goipip show --watch. Colours do not appear if NO_COLOR is set.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if o.Interval < minInterval || o.Interval > maxInterval {
				return usageError{fmt.Errorf("--interval %v: must be 100ms to 1m", o.Interval)}
			}
			o.Names = names
			return runTop(cmd, fetch, o)
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return completeNames(cmd.Context(), fetch, prefix), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().DurationVar(&o.Interval, "interval", o.Interval, "between two looks, 100ms to 1m")
	return cmd
}

func runTop(cmd *cobra.Command, fetch fetchStatuses, o top.Options) error {
	const instead = "goipip show --watch does without"
	out, ok := terminalOf(cmd.OutOrStdout())
	if !ok {
		return errors.New("standard output is no terminal, which goipip top needs: " + instead)
	}
	in, ok := terminalOf(cmd.InOrStdin())
	if !ok {
		return errors.New("standard input is no terminal, from which goipip top takes keys: " + instead)
	}
	if dumb(os.Getenv) {
		return fmt.Errorf("this terminal (TERM=%s) cannot move its cursor, as goipip top needs: %s", show.Printable(os.Getenv("TERM")), instead)
	}
	o.Colour, o.Console = wantColour(os.Getenv), os.Getenv("TERM") == "linux"

	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	defer secondSignalEnds(ctx)()
	// What is left of the input is no command for the shell: the terminal may have answered Bubble Tea's questions late.
	defer func() { _ = unix.IoctlSetInt(int(in.Fd()), unix.TCFLSH, unix.TCIFLUSH) }()
	err := top.Run(ctx, in.File, out.File, top.Fetch(fetch), o)
	if err != nil && ctx.Err() != nil {
		return statusError(exitError) // Ctrl-C
	}
	return err
}
