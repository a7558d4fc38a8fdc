package show

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/stats"
)

// outerHdrLen is what a tunnel adds to each packet, in bytes.
const outerHdrLen = 20

// labelWidth is the width of the column of labels on a screen, with its indent.
const labelWidth = 15

// row returns a label and its value.
func (v View) row(label string, st style, value string) []line {
	return v.hanging(line{{plain, pad("  "+label, labelWidth, left)}}, st, value)
}

// screen is all about one tunnel. What changes while packets pass comes before what does
// not, which a low window may cut off.
func (v View) screen(e entry) []line {
	text := []line{{{strong, e.Config.Name}, {plain, ": "}, e.state().span()}}
	add := func(label string, st style, value string) {
		if value != "" {
			text = append(text, v.row(label, st, value)...)
		}
	}
	add("trouble", bad, e.Trouble)
	st, link := e.link()
	add("link", st, link)
	add("outer", plain, e.outer())
	add("inner", plain, e.inner())
	st, underlay := e.underlay()
	add("underlay", st, underlay)
	add("sends by", plain, e.transmit())
	st, fast := e.fastPath()
	add("fast path", st, fast)
	add("path MTU", plain, e.pathMTU())
	st, keepalive := v.keepalive(e)
	add("keepalive", st, keepalive)
	st, soft := e.softErrors()
	add("soft errors", st, soft)

	text = append(text, nil)
	text = append(text, v.traffic(e)...)
	text = append(text, nil)
	text = append(text, v.drops(e)...)
	text = append(text, nil)

	add("options", plain, e.options())
	add("routes", plain, e.routes())
	if e.Index != 0 {
		add("running", plain, v.since(e.Since))
	} else {
		add("waiting", plain, v.since(e.Since))
	}
	add("process", plain, v.process(*e.process))
	return text
}

// ends returns both outer addresses, with sep between them, or their names while they have none.
func (e entry) ends(sep string) string {
	return e.Config.LocalText() + sep + e.Config.RemoteText()
}

// arrow stands between the ends of a tunnel.
const arrow = " → "

// outer is both outer addresses, with their names. For a local address that the route picks it has the one
// that it picks now.
func (e entry) outer() string {
	local, remote := e.Config.LocalText(), e.Config.RemoteText()
	switch source := e.Underlay.Source; {
	case !e.Config.Local.IsValid() && source.IsValid():
		local = fmt.Sprintf("any, now %v", source)
	case e.Config.Local.IsValid() && e.Config.LocalDevice != "":
		local += " (" + e.Config.LocalDevice + ")"
	}
	if e.Config.Remote.IsValid() && e.Config.RemoteName != "" {
		remote += " (" + e.Config.RemoteName + ")"
	}
	return local + arrow + remote
}

// inner is the inner addresses that goipip set.
func (e entry) inner() string {
	var parts []string
	switch c := e.Config; {
	case c.Peer.IsValid():
		parts = append(parts, c.Address.Addr().String()+arrow+c.Peer.String())
	case c.Address.IsValid():
		parts = append(parts, c.Address.String())
	}
	for _, p := range e.Config.Addresses {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ", ")
}

// routes is the routes that goipip set, in the words of ip-route(8).
func (e entry) routes() string {
	var parts []string
	for _, r := range e.Config.Routes {
		s := r.To.String()
		if r.To == netip.PrefixFrom(netip.IPv4Unspecified(), 0) {
			s = "default"
		}
		if r.Metric != 0 {
			s += fmt.Sprintf(" metric %d", r.Metric)
		}
		if r.Table != 0 {
			s += fmt.Sprintf(" table %d", r.Table)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

func (e entry) link() (style, string) {
	const format = "index %d, MTU %d"
	switch {
	case e.Index == 0:
		return bad, "not made yet"
	case e.Away && e.Up:
		return plain, fmt.Sprintf("in another network namespace; as last seen, up, "+format, e.Index, e.MTU)
	case e.Away:
		return plain, fmt.Sprintf("in another network namespace; as last seen, down, "+format, e.Index, e.MTU)
	case !e.Up:
		return bad, fmt.Sprintf(format+", down: no packets pass until it is up (ip link set %s up)", e.Index, e.MTU, e.Config.Name)
	}
	return plain, fmt.Sprintf(format, e.Index, e.MTU)
}

// options is the options that are in force, in the words of the command line. Of those
// without a value it has the ones that are set.
func (e entry) options() string {
	c := e.Config
	text := func(name string) string { return name + " " + config.Settings[name].Text(&c) }
	parts := []string{text("ttl"), text("tos")}
	add := func(set bool, s string) {
		if set {
			parts = append(parts, s)
		}
	}
	add(c.NoPMTUDisc, "nopmtudisc")
	add(!c.NoPMTUDisc, "pmtudisc")
	add(c.MTU != 0, fmt.Sprintf("mtu %d", c.MTU))
	add(c.Device != "", "dev "+c.Device)
	add(c.Mark != 0, text("fwmark"))
	add(c.ResolveInterval != 0, text("resolve-interval"))
	add(c.Keepalive != 0, text("keepalive"))
	add(c.KeepaliveRetries != 0, fmt.Sprintf("keepalive-retries %d", c.KeepaliveRetries))
	parts = append(parts, text("icmp"), text("tx"))
	add(e.FastPath != nil, text("fast-path"))
	switch clamp := text("clamp-mss"); clamp {
	case "clamp-mss off":
	case "clamp-mss auto":
		parts = append(parts, fmt.Sprintf("%s (now %d)", clamp, e.MaxMSS))
	default:
		parts = append(parts, clamp)
	}
	parts = append(parts, text("offload"), fmt.Sprintf("queues %d", c.Queues))
	add(c.AnyProtocol, "mode any")
	return strings.Join(parts, ", ")
}

func (e entry) underlay() (style, string) {
	u := e.Underlay
	if u.Device == "" {
		return warn, "not known"
	}
	s := u.Device
	if u.DeviceMTU != 0 {
		s += fmt.Sprintf(" (MTU %d)", u.DeviceMTU)
	}
	if u.NextHop.IsValid() {
		s += fmt.Sprintf(", next hop %v", u.NextHop)
		if u.LinkAddr != "" {
			s += " at " + u.LinkAddr
		}
	}
	return plain, s
}

// transmit is the socket that sends, and why it is not the faster one.
func (e entry) transmit() string {
	c, u := e.Config, e.Underlay
	if u.Transmit == "" {
		return ""
	}
	s := u.Transmit + " socket"
	switch tx := config.Settings["tx"].Text(&c); {
	case u.Transmit == tx:
		return s + ", as tx " + tx + " demands"
	case u.WhyRaw != "":
		return s + ": " + u.WhyRaw
	}
	return s
}

// fastPath is whether the kernel carries packets by itself, and why not.
func (e entry) fastPath() (style, string) {
	f := e.FastPath
	switch {
	case f == nil:
		return plain, ""
	case f.Used:
		return plain, fmt.Sprintf("in use: %s packets sent, %s received", count(f.Sent), count(f.Received))
	}
	return warn, "not in use: " + f.WhyNot
}

// keepalive is whether the other end answers.
func (v View) keepalive(e entry) (style, string) {
	k := e.Keepalive
	switch {
	case k == nil:
		return plain, ""
	case !k.Carrier:
		return bad, "silent for " + v.since(k.SilentSince) + ": carrier off"
	}
	return plain, "the other end answers"
}

func (e entry) pathMTU() string {
	u := e.Underlay
	if u.PathMTU == 0 {
		return "not known"
	}
	s := fmt.Sprintf("%d, for inner packets of up to %d bytes", u.PathMTU, u.PathMTU-outerHdrLen)
	if u.ReportedBy != "" {
		s += "; reported by a " + u.ReportedBy
	}
	return s
}

func (e entry) softErrors() (style, string) {
	switch n := e.SoftErrors; n {
	case 0:
		return plain, "none"
	case 1:
		return warn, "1: the next sender is notified (ICMP 3/1)"
	default:
		return warn, fmt.Sprintf("%d: the next %d senders are notified (ICMP 3/1)", n, n)
	}
}

// process is what carries the tunnel, and how it was started.
func (v View) process(p control.Process) string {
	role := string(p.Role)
	switch p.Role {
	case control.RoleRun, control.RoleBeside:
		role = "goipip run"
	case control.RoleBackground:
		role = "in the background (goipip tunnel add)"
	case control.RoleForeground:
		role = "in the foreground"
	}
	parts := []string{fmt.Sprintf("pid %d, %s", p.PID, role)}
	if p.Config != "" {
		parts = append(parts, "config "+p.Config)
	}
	parts = append(parts, plural(uint64(p.Workers), "worker"), "goipip "+p.Version, "for "+duration(v.Now.Sub(p.Started)))
	return strings.Join(parts, ", ")
}

func plural(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}

// traffic is a table of both directions, the most important columns first.
func (v View) traffic(e entry) []line {
	cells := func(head string, f func(control.Traffic) string) []span {
		return []span{{plain, head}, {plain, f(e.TX)}, {plain, f(e.RX)}}
	}
	return v.align(1, "  ", []column{
		{left, []span{{plain, pad("", labelWidth-2, left)}, {plain, "  sent"}, {plain, "  received"}}},
		{right, cells("packets", func(t control.Traffic) string { return count(t.Packets) })},
		{right, cells("bytes", func(t control.Traffic) string { return size(t.Bytes) })},
		{right, cells("rate", func(t control.Traffic) string { return Rate(t.ByteRate) })},
		{right, cells("packets/s", func(t control.Traffic) string { return count(t.PacketRate) })},
		{left, cells("last packet", func(t control.Traffic) string { return v.ago(t.Last) })},
	})
}

// drops is how many packets were dropped, and what the reasons mean.
func (v View) drops(e entry) []line {
	sent, received := v.direction("dropped when sent", e.TX.Drops), v.direction("dropped when received", e.RX.Drops)
	if sent == nil && received == nil {
		return v.row("dropped", plain, "none")
	}
	return append(sent, received...)
}

// direction is the drops of one direction, in the order of docs/counters.md.
func (v View) direction(head string, drops map[string]uint64) []line {
	list := byReason(drops)
	if list == nil {
		return nil
	}
	names, numbers := 0, 0
	for _, d := range list {
		names, numbers = max(names, width(d.name)), max(numbers, width(count(d.n)))
	}
	text := []line{{{plain, "  " + head}}}
	for _, d := range list {
		lead := line{
			{warn, "    " + pad(d.name, names, left)},
			{plain, "  "},
			{warn, pad(count(d.n), numbers, right)},
			{plain, "  "},
		}
		text = append(text, v.hanging(lead, plain, d.help)...)
	}
	return text
}

// drop is how many packets were dropped for a reason.
type drop struct {
	name, help string
	n          uint64
}

const unknownReason = "a reason that this version of goipip does not know"

// byReason returns the drops that occurred. A process of another version may know
// reasons that this one does not; they come last.
func byReason(drops map[string]uint64) []drop {
	var list []drop
	known := make(map[string]bool)
	for r := range stats.NumReasons {
		known[r.String()] = true
		if n := drops[r.String()]; n > 0 {
			list = append(list, drop{r.String(), r.Help(), n})
		}
	}
	var others []drop
	for name, n := range drops {
		if !known[name] && n > 0 {
			others = append(others, drop{name, unknownReason, n})
		}
	}
	slices.SortFunc(others, func(a, b drop) int { return cmp.Compare(a.name, b.name) })
	return append(list, others...)
}

// ReasonHelp says what a reason means.
func ReasonHelp(reason string) string {
	for r := range stats.NumReasons {
		if r.String() == reason {
			return r.Help()
		}
	}
	return unknownReason
}
