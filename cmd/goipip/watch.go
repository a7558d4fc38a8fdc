//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/show"

	"golang.org/x/sys/unix"
)

// watchInterval is that of goipip show --watch. Rates are over a second, too.
const watchInterval = time.Second

// runWatch shows tunnels until ctx is done. A terminal gets a screen, anything else a
// block after the other.
func (o *showOptions) runWatch(ctx context.Context, fetch fetchStatuses, in io.Reader, out io.Writer) error {
	if t, ok := terminalOf(out); ok && !o.json && !dumb(os.Getenv) {
		w := watcher{showOptions: *o, fetch: fetch, screen: screen{out: t}}
		if keys, ok := terminalOf(in); ok {
			w.screen.keys = &keys
		}
		return w.run(ctx)
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		all, err := fetch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = o.writeBlock(out, all)
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

// writeBlock writes a text with an empty line after it, or a line of JSON.
func (o *showOptions) writeBlock(out io.Writer, all []control.Status) error {
	if o.json {
		return o.writeJSON(out, all)
	}
	v := newView(out)
	v.Header = v.Now.Format(time.DateTime)
	lines, err := v.Lines(all, o.name)
	if err != nil {
		return err
	}
	if lines == nil {
		lines = []string{v.Header, "", show.NoTunnels}
	}
	return writeLines(out, append(lines, ""))
}

// watcher is goipip show --watch on a terminal.
type watcher struct {
	showOptions
	fetch  fetchStatuses
	screen screen

	all     []control.Status // as fetched last
	err     error            // of that
	stopped bool             // by Ctrl-Z: the terminal is the shell's
}

// run shows the screen until ctx is done, a key ends it, or the terminal goes away. What
// is wrong at once is an error. What goes wrong later shows on the screen, until it is
// right again: a process may be on its way back.
func (w *watcher) run(ctx context.Context) (err error) {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	w.all, w.err = w.fetch(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if w.err != nil {
		return w.err
	}
	if _, err := show.Select(w.all, w.name); err != nil {
		return err
	}

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT)
	defer signal.Stop(signals)
	defer func() { err = errors.Join(err, w.screen.leave()) }()
	if err := w.screen.enter(); err != nil {
		return err
	}
	if w.screen.keys != nil {
		go awaitQuit(w.screen.keys, cancel)
	}

	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		if err := w.draw(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case s := <-signals:
			if err := w.handle(s); err != nil {
				return err
			}
		case <-tick.C:
			w.all, w.err = w.fetch(ctx)
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}

// handle does what a signal calls for beside drawing anew.
func (w *watcher) handle(s os.Signal) error {
	switch s {
	case unix.SIGTSTP: // Ctrl-Z
		if err := w.screen.leave(); err != nil {
			return err
		}
		// Other threads may run on for a moment after kill returns.
		w.stopped = true
		return os.NewSyscallError("kill", unix.Kill(os.Getpid(), unix.SIGSTOP))
	case unix.SIGCONT:
		w.stopped = false
		return w.screen.enter()
	}
	return nil
}

// draw shows what was fetched last.
func (w *watcher) draw() error {
	if w.stopped {
		return nil
	}
	v := newView(w.screen.out.File)
	v.Width, v.Height = w.screen.out.size()
	v.Header = v.Now.Format(time.TimeOnly) + ", every second; Ctrl-C ends"
	if w.screen.keys != nil {
		v.Header = v.Now.Format(time.TimeOnly) + ", every second; q ends"
	}
	err := w.err
	var lines []string
	if err == nil {
		lines, err = v.Lines(w.all, w.name)
	}
	switch {
	case err != nil:
		lines = v.Problem(err.Error())
	case lines == nil:
		lines = v.Problem(show.NoTunnels)
	}
	return w.screen.draw(lines)
}

// awaitQuit calls quit when q is typed, or when the terminal is gone.
func awaitQuit(keys io.Reader, quit func()) {
	key := make([]byte, 1)
	for {
		if _, err := keys.Read(key); err != nil || key[0] == 'q' || key[0] == 'Q' {
			quit()
			return
		}
	}
}
