// Package show shows tunnels to people: one on a screen of its own, several in a table.
package show

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/stats"
)

// View says how tunnels are shown.
type View struct {
	Now   time.Time
	Width int // of the screen in columns; 0 for no limit
	Color bool
}

// One shows one tunnel of a process, with everything about it.
func (v View) One(w io.Writer, p control.Process, t control.TunnelStatus) error {
	b := &screen{View: v}
	state, style := stateOf(&t)
	fmt.Fprintf(b, "%s %s: %s\n", b.styled(style, "●"), b.styled(bold, t.Config.Name), b.styled(style, state))
	if t.Trouble != "" {
		b.row("trouble", b.styled(red, t.Trouble))
	}
	b.row("ends", fmt.Sprintf("local %s, remote %v", t.Config.LocalText(), t.Config.Remote))
	b.row("options", options(&t))
	b.row("link", link(&t))
	if t.Trouble == "" {
		b.underlay(&t.Underlay)
	}
	if t.SoftErrors > 0 {
		b.row("soft errors", b.styled(yellow, fmt.Sprintf("%d, of which as many later senders are notified", t.SoftErrors)))
	}
	b.row("received", b.traffic(&t.RX))
	b.drops(&t.RX)
	b.row("sent", b.traffic(&t.TX))
	b.drops(&t.TX)
	b.row("process", process(&p, v.Now))
	b.row("tunnel", "for "+span(v.Now.Sub(t.Since)))
	_, err := w.Write(b.Bytes())
	return err
}

// stateOf returns the state of a tunnel in a word or two.
func stateOf(t *control.TunnelStatus) (string, style) {
	switch {
	case t.Away:
		return "in another network namespace", yellow
	case !t.Up:
		return "link down", yellow
	case t.Trouble != "":
		return "no path", red
	}
	return "up", green
}

// options are those in force, in the words of ip-tunnel(8).
func options(t *control.TunnelStatus) string {
	c := &t.Config
	ttl, pmtu := "ttl inherit", "pmtudisc"
	if c.TTL != 0 {
		ttl = fmt.Sprintf("ttl %d", c.TTL)
	}
	if c.NoPMTUDisc {
		pmtu = "nopmtudisc"
	}
	words := []string{ttl, pmtu}
	switch {
	case c.InheritTOS:
		words = append(words, "tos inherit")
	case c.TOS != 0:
		words = append(words, fmt.Sprintf("tos 0x%02x", c.TOS))
	}
	if c.Device != "" {
		words = append(words, "dev "+c.Device)
	}
	if c.Mark != 0 {
		words = append(words, fmt.Sprintf("fwmark %#x", c.Mark))
	}
	if c.RelayICMP {
		words = append(words, "icmp rfc2003")
	}
	if c.NoOffload {
		words = append(words, "offload off")
	}
	if c.Transmit != 0 {
		words = append(words, "tx "+c.Transmit.String())
	}
	if c.Queues > 1 {
		words = append(words, fmt.Sprintf("%d queues", c.Queues))
	}
	return strings.Join(words, ", ")
}

func link(t *control.TunnelStatus) string {
	s := fmt.Sprintf("index %d, mtu %d", t.Index, t.MTU)
	if t.Config.MTU == 0 {
		s += ", which follows the route"
	}
	return s
}

// underlay shows the path of outer packets.
func (b *screen) underlay(u *control.Underlay) {
	if u.Device != "" {
		s := "by " + u.Device
		if u.NextHop.IsValid() {
			s += fmt.Sprintf(" to %v", u.NextHop)
		}
		if u.LinkAddr != "" {
			s += " (" + u.LinkAddr + ")"
		}
		if u.Source.IsValid() {
			s += fmt.Sprintf(", from %v", u.Source)
		}
		b.row("path", s)
	}
	if u.PathMTU != 0 {
		s := fmt.Sprint(u.PathMTU)
		switch {
		case u.ReportedBy != "":
			s += ", as a router reported"
		case u.DeviceMTU > u.PathMTU:
			s += fmt.Sprintf(", less than the %d of %s", u.DeviceMTU, u.Device)
		}
		b.row("path mtu", s)
	}
	if u.WhyRaw != "" {
		b.row("sends", fmt.Sprintf("by %s socket: %s", u.Transmit, u.WhyRaw))
	} else {
		b.row("sends", fmt.Sprintf("by %s socket", u.Transmit))
	}
}

// traffic shows one direction.
func (b *screen) traffic(t *control.Traffic) string {
	s := fmt.Sprintf("%s in %d packets", bytesOf(t.Bytes), t.Packets)
	if t.PacketRate > 0 {
		s += fmt.Sprintf(", now %s, %s", rate(t.ByteRate), packetRate(t.PacketRate))
	}
	if !t.Last.IsZero() {
		s += ", last " + ago(b.Now.Sub(t.Last))
	}
	return s
}

// drops shows each reason for which packets were dropped.
func (b *screen) drops(t *control.Traffic) {
	for _, d := range dropsOf(t) {
		b.row("", b.styled(yellow, fmt.Sprintf("%d dropped, %v", d.n, d.reason))+": "+d.reason.Help())
	}
}

type drop struct {
	reason stats.Reason
	n      uint64
}

// dropsOf returns the drops in the order of their reasons.
func dropsOf(t *control.Traffic) (drops []drop) {
	for reason := range stats.NumReasons {
		if n := t.Drops[reason.String()]; n > 0 {
			drops = append(drops, drop{reason, n})
		}
	}
	return drops
}

func process(p *control.Process, now time.Time) string {
	s := fmt.Sprintf("%d, ", p.PID)
	switch p.Role {
	case control.RoleBackground:
		s += "started by goipip tunnel add"
	case control.RoleRun:
		s += "goipip run --config " + p.Config
	default:
		s += "in the foreground"
	}
	return s + ", for " + span(now.Sub(p.Started)) + ", version " + p.Version
}

// Table shows tunnels, a line each.
func (v View) Table(w io.Writer, tunnels []control.TunnelStatus) error {
	columns := []column{
		{title: "tunnel", text: func(t *control.TunnelStatus) string { return t.Config.Name }},
		{title: "state", text: shortState},
		{title: "local", text: func(t *control.TunnelStatus) string { return t.Config.LocalText() }},
		{title: "remote", text: func(t *control.TunnelStatus) string { return t.Config.Remote.String() }},
		{title: "received", right: true, text: func(t *control.TunnelStatus) string { return shortRate(t.RX.ByteRate) }},
		{title: "sent", right: true, text: func(t *control.TunnelStatus) string { return shortRate(t.TX.ByteRate) }},
		{title: "dropped", right: true, optional: 1, text: func(t *control.TunnelStatus) string { return fmt.Sprint(dropped(t)) }},
		{title: "last received", optional: 2, right: true, text: func(t *control.TunnelStatus) string { return last(v.Now, t.RX.Last) }},
		{title: "path mtu", right: true, optional: 3, text: pathMTU},
	}
	for i := range columns {
		columns[i].measure(tunnels)
	}
	columns = fitting(columns, v.Width)
	b := &screen{View: v}
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.pad(c.title, c.title))
	}
	fmt.Fprintln(b, b.styled(bold, strings.TrimRight(strings.Join(titles, "  "), " ")))
	for i := range tunnels {
		var cells []string
		for _, c := range columns {
			text := c.text(&tunnels[i])
			shown := text
			if c.title == "state" {
				_, style := stateOf(&tunnels[i])
				shown = b.styled(style, text)
			} else if c.title == "dropped" && text != "0" {
				shown = b.styled(yellow, text)
			}
			cells = append(cells, c.pad(text, shown))
		}
		fmt.Fprintln(b, strings.TrimRight(strings.Join(cells, "  "), " "))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// column is one of a table.
type column struct {
	title    string
	right    bool
	optional int // the greatest goes first where the screen is too narrow; 0 never
	text     func(*control.TunnelStatus) string
	width    int
}

func (c *column) measure(tunnels []control.TunnelStatus) {
	c.width = len(c.title)
	for i := range tunnels {
		c.width = max(c.width, len(c.text(&tunnels[i])))
	}
}

// pad returns what is shown of a text in the column.
func (c *column) pad(text, shown string) string {
	space := strings.Repeat(" ", max(0, c.width-len(text)))
	if c.right {
		return space + shown
	}
	return shown + space
}

// fitting returns the columns that fit a width.
func fitting(columns []column, width int) []column {
	for width > 0 {
		sum, least := -2, 0
		for i, c := range columns {
			sum += c.width + 2
			if c.optional > columns[least].optional {
				least = i
			}
		}
		if sum <= width || columns[least].optional == 0 {
			break
		}
		columns = slices.Delete(columns, least, least+1)
	}
	return columns
}

func shortState(t *control.TunnelStatus) string {
	if t.Away {
		return "away"
	}
	state, _ := stateOf(t)
	return strings.TrimPrefix(state, "link ")
}

func pathMTU(t *control.TunnelStatus) string {
	if t.Underlay.PathMTU == 0 {
		return "-"
	}
	return fmt.Sprint(t.Underlay.PathMTU)
}

func dropped(t *control.TunnelStatus) (n uint64) {
	for _, m := range []map[string]uint64{t.RX.Drops, t.TX.Drops} {
		for _, drops := range m {
			n += drops
		}
	}
	return n
}

func last(now, at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return ago(now.Sub(at))
}

// screen is what is shown.
type screen struct {
	bytes.Buffer
	View
}

// labelWidth is that of the longest label of a row.
const labelWidth = 13

// row prints a label and a text, which is broken where the screen ends.
func (b *screen) row(label, text string) {
	fmt.Fprintf(b, "%*s  ", labelWidth, label)
	room := b.Width - labelWidth - 2
	if b.Width == 0 || room < 20 {
		fmt.Fprintln(b, text)
		return
	}
	column := 0
	for i, word := range strings.Fields(text) {
		n := visible(word)
		switch {
		case i > 0 && column+1+n > room:
			fmt.Fprintf(b, "\n%*s", labelWidth+2, "")
			column = 0
		case i > 0:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	b.WriteByte('\n')
}
