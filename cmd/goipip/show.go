//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"

	"github.com/spf13/cobra"
)

// completionTimeout bounds the wait for names, since a shell waits with it.
const completionTimeout = time.Second

// fetchStatuses returns the statuses of all goipip processes.
type fetchStatuses func(context.Context) ([]control.Status, error)

// showOptions is what the words and flags of goipip show say.
type showOptions struct {
	name  string // of the tunnel; empty for all
	json  bool
	watch bool
}

func newShowCommand(fetch fetchStatuses) *cobra.Command {
	var o showOptions
	cmd := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show tunnels: state, path, rates, and what was dropped and why",
		Long: `Show the tunnel NAME, or the only one: its state, and why no packet leaves; its
ends; the path of its packets, and which socket sends them and why; path MTU;
ICMP errors; rates; packets dropped by reason (docs/counters.md); the last packet
sent and received; its options and its process. Several tunnels have a line each.

Colours appear on terminals only, and not if NO_COLOR is set. With --watch, a
terminal is redrawn every second until q or Ctrl-C; a pipe or file gets the text
every second, or with --json one document a line.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{errors.New("show takes one NAME, and not " + strings.Join(args, " "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = strings.Join(args, "")
			defer secondSignalEnds(cmd.Context())()
			var err error
			if o.watch {
				err = o.runWatch(cmd.Context(), fetch, cmd.InOrStdin(), cmd.OutOrStdout())
			} else {
				err = o.runOnce(cmd.Context(), fetch, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			switch {
			case errors.Is(err, syscall.EPIPE):
				// A reader such as head(1) has enough. Most programs die of this signal.
				return statusError(128 + int(syscall.SIGPIPE))
			case err != nil && cmd.Context().Err() != nil:
				return statusError(exitError) // Ctrl-C
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeNames(cmd.Context(), fetch, prefix), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print a JSON document: a list with an object for each process")
	cmd.Flags().BoolVar(&o.watch, "watch", false, "repeat every second")
	return cmd
}

// runOnce shows tunnels once.
func (o *showOptions) runOnce(ctx context.Context, fetch fetchStatuses, out, stderr io.Writer) error {
	all, err := fetch(ctx)
	if err != nil {
		return err
	}
	if o.json {
		return o.writeJSON(out, all)
	}
	lines, err := newView(out).Lines(all, o.name)
	if err != nil {
		return err
	}
	if lines == nil {
		_, err = fmt.Fprintln(stderr, show.NoTunnels)
		return err
	}
	return writeLines(out, lines)
}

// newView is a view for out: if that is a terminal, of its present width.
func newView(out io.Writer) show.View {
	v := show.View{Now: time.Now()}
	if t, ok := terminalOf(out); ok {
		v.Width, _ = t.size()
		v.Colour = wantColour(os.Getenv)
	}
	return v
}

// wantColour reports whether a terminal should get colours: https://no-color.org.
func wantColour(env func(string) string) bool {
	return env("NO_COLOR") == "" && !dumb(env)
}

// dumb reports whether the terminal knows no control sequences.
func dumb(env func(string) string) bool {
	term := env("TERM")
	return term == "" || term == "dumb"
}

// writeJSON writes one document: for a program that watches, in one line.
func (o *showOptions) writeJSON(out io.Writer, all []control.Status) error {
	var b bytes.Buffer
	if err := show.JSON(&b, all, o.name, o.watch); err != nil {
		return err
	}
	_, err := out.Write(b.Bytes())
	return err
}

// writeLines writes lines at once.
func writeLines(out io.Writer, lines []string) error {
	_, err := io.WriteString(out, strings.Join(lines, "\n")+"\n")
	return err
}

// completeNames returns the names of tunnels for a shell, each with its ends.
func completeNames(ctx context.Context, fetch fetchStatuses, prefix string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	all, err := fetch(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, t := range show.Tunnels(all) {
		if strings.HasPrefix(t.Config.Name, prefix) {
			names = append(names, cobra.CompletionWithDesc(t.Config.Name, show.Ends(t)))
		}
	}
	return names
}
