// Package show renders the statuses of goipip processes as text and as JSON. It only
// formats: the caller fetches the statuses, knows the terminal, and writes the lines.
// Nothing is kept between calls, and the statuses are not changed.
package show

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"goipip/internal/daemon/control"
)

// NoTunnels is the message for a host without tunnels.
const NoTunnels = "no tunnels: make one with goipip -local ADDRESS -remote ADDRESS, or goipip tunnel add NAME remote ADDRESS local ADDRESS"

// View is the form of the text.
type View struct {
	Now    time.Time // ages are relative to it, and times are in its location
	Width  int       // columns; 0 for lines as long as they are
	Height int       // lines; 0 for as many as there are
	Colour bool      // by SGR sequences
	Header string    // a line above all others; empty for none
}

// entry is a tunnel and its process.
type entry struct {
	*control.TunnelStatus
	process *control.Process
}

// Select returns the statuses with the tunnels called name only, without the processes
// that have none of them. An empty name selects everything. It is an error if there is
// no such tunnel.
func Select(all []control.Status, name string) ([]control.Status, error) {
	if name == "" {
		return all, nil
	}
	var found []control.Status
	for _, s := range all {
		var kept []control.TunnelStatus
		for _, t := range s.Tunnels {
			if t.Config.Name == name {
				kept = append(kept, t)
			}
		}
		if kept != nil {
			s.Tunnels = kept
			found = append(found, s)
		}
	}
	if found != nil {
		return found, nil
	}
	var names []string
	for _, e := range entries(all) {
		names = append(names, e.Config.Name)
	}
	if names == nil {
		return nil, fmt.Errorf("no tunnel %q: there are none", name)
	}
	return nil, fmt.Errorf("no tunnel %q: there are %s", name, someNames(slices.Compact(names)))
}

// someNames is a list for an error: at most ten names, since there may be thousands.
func someNames(names []string) string {
	const most = 10
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// Lines returns the text about the tunnels called name, or about all if it is empty: a
// screen for each of the former and for an only tunnel, a table for several. The lines
// have no newlines. Without any tunnel, and without a name, there are none.
func (v View) Lines(all []control.Status, name string) ([]string, error) {
	selected, err := Select(all, name)
	if err != nil {
		return nil, err
	}
	list := entries(selected)
	var text []line
	switch {
	case len(list) == 0:
		return nil, nil
	case name == "" && len(list) > 1:
		text = v.table(list)
	default:
		for i, e := range list {
			if i > 0 {
				text = append(text, nil)
			}
			text = append(text, v.screen(e)...)
		}
	}
	return v.finish(text), nil
}

// Problem returns text as lines that stand out.
func (v View) Problem(text string) []string {
	var lines []line
	for part := range strings.Lines(text) {
		for _, s := range wrap(strings.TrimSpace(part), v.Width) {
			lines = append(lines, line{{bad, s}})
		}
	}
	return v.finish(lines)
}

// finish adds the header, keeps to the view's size, and renders.
func (v View) finish(text []line) []string {
	if v.Header != "" {
		text = append([]line{{{plain, v.Header}}, nil}, text...)
	}
	if v.Height > 0 && len(text) > v.Height {
		more := len(text) - v.Height + 1
		text = append(text[:v.Height-1], line{{warn, fmt.Sprintf("… %d more lines, which a higher window would show", more)}})
	}
	out := make([]string, len(text))
	for i, l := range text {
		out[i] = l.cut(v.Width).render(v.Colour)
	}
	return out
}

// Tunnels returns the tunnels of all processes by name.
func Tunnels(all []control.Status) []*control.TunnelStatus {
	var list []*control.TunnelStatus
	for _, e := range entries(all) {
		list = append(list, e.TunnelStatus)
	}
	return list
}

// Ends returns the outer addresses of a tunnel.
func Ends(t *control.TunnelStatus) string { return entry{TunnelStatus: t}.ends(arrow) }

// entries returns the tunnels of all processes by name, tun2 before tun10.
func entries(all []control.Status) []entry {
	var list []entry
	for i := range all {
		for j := range all[i].Tunnels {
			list = append(list, entry{&all[i].Tunnels[j], &all[i].Process})
		}
	}
	slices.SortStableFunc(list, func(a, b entry) int {
		return cmp.Or(CompareNames(a.Config.Name, b.Config.Name), cmp.Compare(a.process.PID, b.process.PID))
	})
	return list
}

// CompareNames compares the numbers at the end of names as numbers.
func CompareNames(a, b string) int {
	const digits = "0123456789"
	return cmp.Or(
		strings.Compare(strings.TrimRight(a, digits), strings.TrimRight(b, digits)),
		cmp.Compare(len(a), len(b)), // without leading zeros, a longer number is a greater one
		strings.Compare(a, b))
}

// JSON writes the selected statuses as one document, a list: in several lines, or in
// one.
func JSON(w io.Writer, all []control.Status, name string, oneLine bool) error {
	selected, err := Select(all, name)
	if err != nil {
		return err
	}
	if selected == nil {
		selected = []control.Status{} // [] and not null
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if !oneLine {
		e.SetIndent("", "  ")
	}
	return e.Encode(selected)
}
