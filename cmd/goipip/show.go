//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// watchInterval is how often goipip show --watch looks.
const watchInterval = time.Second

// showOptions are the flags of goipip show.
type showOptions struct {
	json, watch bool
}

func newShowCommand(o *options) *cobra.Command {
	var s showOptions
	cmd := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show tunnels: state, path, rates, drops",
		Long: `Show the tunnels of this network namespace: one with all that there is to know about it,
several in a table. Rates are over the last second. Colours are for terminals; the
environment variable NO_COLOR turns them off.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{errors.New("goipip show takes one name, or none for all tunnels")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return o.show(cmd.Context(), cmd.OutOrStdout(), name, s)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if statuses, err := o.statuses(); err == nil && len(args) == 0 {
				names = namesOf(statuses)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&s.json, "json", false, "show a list of processes with their tunnels as JSON (docs/control.md)")
	cmd.Flags().BoolVar(&s.watch, "watch", false, "show again each second, until Ctrl-C")
	return cmd
}

// statuses asks all processes of this network namespace.
func (o *options) statuses() (all []control.Status, err error) {
	err = backend{o}.each(func(c *control.Client) error {
		var s control.Status
		err := c.Call(control.MethodStatus, control.NameParams{}, &s)
		if err == nil {
			all = append(all, s)
		}
		return err
	})
	return all, err
}

func namesOf(statuses []control.Status) (names []string) {
	for _, s := range statuses {
		for _, t := range s.Tunnels {
			names = append(names, t.Config.Name)
		}
	}
	return names
}

func (o *options) show(ctx context.Context, out io.Writer, name string, s showOptions) error {
	if err := needDescriptors("a look at the tunnels", processDescriptors); err != nil {
		return err
	}
	terminal := isTerminal(os.Stdout)
	if !s.watch {
		text, err := o.shown(name, s, terminal)
		if err == nil {
			_, err = out.Write(text)
		}
		return err
	}
	if !terminal || s.json {
		return o.watchLines(ctx, out, name, s)
	}
	return o.watchScreen(ctx, out, name, s)
}

// shown is what goipip show prints.
func (o *options) shown(name string, s showOptions, terminal bool) ([]byte, error) {
	statuses, err := o.statuses()
	if err != nil {
		return nil, err
	}
	if name != "" {
		names := namesOf(statuses)
		for i := range statuses {
			statuses[i].Tunnels = slices.DeleteFunc(statuses[i].Tunnels, func(t control.TunnelStatus) bool { return t.Config.Name != name })
		}
		statuses = slices.DeleteFunc(statuses, func(s control.Status) bool { return len(s.Tunnels) == 0 })
		if len(statuses) == 0 && len(names) == 0 {
			return nil, fmt.Errorf("no tunnel %q: there is none in this network namespace", name)
		} else if len(statuses) == 0 {
			return nil, fmt.Errorf("no tunnel %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	var b bytes.Buffer
	if s.json {
		err := encodeStatuses(&b, statuses, !s.watch)
		return b.Bytes(), err
	}
	view := show.View{Now: time.Now(), Color: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	if terminal {
		view.Width, _ = terminalSize(os.Stdout)
	}
	var tunnels []control.TunnelStatus
	for _, s := range statuses {
		tunnels = append(tunnels, s.Tunnels...)
	}
	switch {
	case len(tunnels) == 0 && s.watch:
		fmt.Fprintln(&b, "no tunnels")
	case len(tunnels) == 0:
		fmt.Fprintln(os.Stderr, "no tunnels in this network namespace: make one with goipip tunnel add")
	case len(tunnels) == 1:
		i := slices.IndexFunc(statuses, func(s control.Status) bool { return len(s.Tunnels) == 1 })
		err = view.One(&b, statuses[i].Process, tunnels[0])
	default:
		err = view.Table(&b, tunnels)
	}
	return b.Bytes(), err
}

func encodeStatuses(b *bytes.Buffer, statuses []control.Status, indent bool) error {
	if statuses == nil {
		statuses = []control.Status{}
	}
	e := json.NewEncoder(b)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(statuses)
}

// watchLines prints again and again, for programs and files.
func (o *options) watchLines(ctx context.Context, out io.Writer, name string, s showOptions) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		text, err := o.shown(name, s, false)
		if err == nil && !s.json {
			text = append(text, '\n')
		}
		if err == nil {
			_, err = out.Write(text)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sequences of a terminal (console_codes(4), xterm).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the alternate screen, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	endOfLine   = "\x1b[K" // clears the rest of the line
	endOfScreen = "\x1b[J" // clears the rest of the screen
)

// watchScreen shows tunnels on the whole screen of a terminal, and leaves that as it was.
func (o *options) watchScreen(ctx context.Context, out io.Writer, name string, s showOptions) (err error) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	defer func() {
		_, leaveErr := io.WriteString(out, leaveScreen)
		err = errors.Join(err, leaveErr)
	}()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		text, err := o.shown(name, s, true)
		if err != nil {
			return err
		}
		if _, err := out.Write(frame(text)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-resized:
		}
	}
}

// frame is a text that takes the place of the one before it on the screen, as far as there is
// room.
func frame(text []byte) []byte {
	_, height := terminalSize(os.Stdout)
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if height > 0 {
		lines = lines[:min(len(lines), height)]
	}
	f := []byte(home)
	for i, line := range lines {
		if i > 0 {
			f = append(f, '\r', '\n')
		}
		f = append(append(f, line...), endOfLine...)
	}
	return append(f, endOfScreen...)
}

// terminalSize returns the columns and lines of a terminal; 0 if they are not known.
func terminalSize(f *os.File) (width, height int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}
