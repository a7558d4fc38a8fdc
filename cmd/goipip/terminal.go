//go:build linux

package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminal is a file that is one.
type terminal struct{ *os.File }

// terminalOf returns the terminal that f, a stream of the command, leads to.
func terminalOf(f any) (terminal, bool) {
	if o, ok := f.(*output); ok {
		f = o.file
	}
	file, ok := f.(*os.File)
	if !ok {
		return terminal{}, false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return terminal{file}, err == nil
}

// size returns the columns and lines of the window. A serial line does not know, and
// gets those of a VT100.
func (t terminal) size() (width, height int) {
	ws, err := unix.IoctlGetWinsize(int(t.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 || ws.Row == 0 {
		return 80, 24
	}
	return int(ws.Col), int(ws.Row)
}

// Control sequences of xterm, which all of today's terminals know; those that do not
// know one ignore it (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l" // the alternate screen, no cursor, no wrapping
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	eraseLine   = "\x1b[K" // from the cursor on
	eraseBelow  = "\x1b[J" // the same, and all lines below
	beginUpdate = "\x1b[?2026h"
	endUpdate   = "\x1b[?2026l" // only now the window shows what was written
)

// screen is the whole window of a terminal, as top(1) takes it. The owner must call
// leave, also after an error.
type screen struct {
	out   terminal
	keys  *terminal     // what is typed; nil if that is not from a terminal
	saved *unix.Termios // of keys, while the screen is entered
}

// enter takes the window, and takes it again if others wrote there. Keys arrive one by
// one, and do not show.
func (s *screen) enter() error {
	if s.keys != nil {
		t, err := unix.IoctlGetTermios(int(s.keys.Fd()), unix.TCGETS)
		if err != nil {
			return os.NewSyscallError("ioctl TCGETS", err)
		}
		if s.saved == nil {
			saved := *t
			s.saved = &saved
		}
		t.Lflag &^= unix.ICANON | unix.ECHO // but ISIG: Ctrl-C and Ctrl-Z are signals
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		if err := unix.IoctlSetTermios(int(s.keys.Fd()), unix.TCSETSW, t); err != nil {
			return os.NewSyscallError("ioctl TCSETSW", err)
		}
	}
	_, err := s.out.WriteString(enterScreen)
	return err
}

// leave gives the window back as it was.
func (s *screen) leave() error {
	_, err := s.out.WriteString(leaveScreen)
	if s.saved != nil {
		// Without what was typed meanwhile, which the shell would take for commands.
		e := unix.IoctlSetTermios(int(s.keys.Fd()), unix.TCSETSF, s.saved)
		s.saved = nil
		if err == nil {
			err = os.NewSyscallError("ioctl TCSETSF", e)
		}
	}
	return err
}

// draw replaces what is in the window, with one write. A line is erased before its text,
// because after a text as wide as the window the cursor is still on its last column.
func (s *screen) draw(lines []string) error {
	var b bytes.Buffer
	b.WriteString(beginUpdate + home)
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if i < len(lines)-1 {
			b.WriteString(eraseLine)
		} else {
			b.WriteString(eraseBelow)
		}
		b.WriteString(l)
	}
	b.WriteString(endUpdate)
	_, err := s.out.Write(b.Bytes())
	return err
}

// secondSignalEnds has a second signal end even a command whose output nobody takes (Ctrl-S), after the one that ended ctx, until
// stop.
func secondSignalEnds(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { signal.Reset(unix.SIGINT, unix.SIGTERM) })
}
