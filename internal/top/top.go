// Package top is goipip top: a live view of tunnels on a terminal. It fetches statuses at an interval, keeps their last
// minute, and draws; it changes nothing.
package top

import (
	"context"
	"fmt"
	"os"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
)

// Fetch returns the statuses of all goipip processes. With an error it may return those of some.
type Fetch func(context.Context) ([]control.Status, error)

// Options is what to show, and how.
type Options struct {
	Names    []string      // of tunnels; none for all
	Interval time.Duration // between two fetches
	Colour   bool
	Console  bool // the terminal is the Linux console
}

// Run shows tunnels until ctx is done or a key ends it. Both files are terminals, which it leaves as they were. What is
// wrong at once, such as a name without a tunnel, is an error; what goes wrong later is shown until it is right again.
func Run(ctx context.Context, in, out *os.File, fetch Fetch, o Options) error {
	first := takeSample(ctx, fetch)
	if first.err != nil {
		return first.err
	}
	for _, name := range o.Names {
		if _, err := show.Select(first.all, name); err != nil {
			return err
		}
	}
	m := newModel(ctx, fetch, o)
	m.take(first)

	// Sixteen colours are enough. Without a profile Bubble Tea would run tmux to detect one.
	profile := colorprofile.Ascii
	if o.Colour {
		profile = colorprofile.ANSI
	}
	p := tea.NewProgram(m, tea.WithInput(in), tea.WithOutput(out), tea.WithColorProfile(profile), tea.WithoutSignalHandler())
	// Unlike WithContext, Quit waits until the goroutine that reads keys has ended.
	defer context.AfterFunc(ctx, p.Quit)()
	if _, err := p.Run(); err != nil {
		return fmt.Errorf("draw on the terminal: %w", err)
	}
	return nil
}

func newModel(ctx context.Context, fetch Fetch, o Options) *model {
	m := &model{ctx: ctx, fetch: fetch, names: o.Names, interval: o.Interval, colour: o.Colour, blocks: eighths}
	if o.Console {
		m.blocks = shades
	}
	return m
}
