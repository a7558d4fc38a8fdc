package iproute

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"goipip/internal/dsfield"
	"goipip/internal/tunnel"
)

// printer prints tunnels as text or as JSON (print_tunnel in ip/iptunnel.c, lib/json_print.c,
// lib/json_writer.c).
type printer struct {
	Options
	b     bytes.Buffer
	empty bool // nothing stands before the next element of the JSON object or array
	depth int
}

// text prints what stands between tunnels, even in JSON: counters and ends of lines.
func (p *printer) text(s string) { p.b.WriteString(s) }

// line ends a line of several about one tunnel.
func (p *printer) line() {
	if p.Oneline {
		p.text("\\")
	} else {
		p.text("\n")
	}
}

// begin and end stand around a list.
func (p *printer) begin() {
	if p.JSON {
		p.text("[")
		if p.Pretty {
			p.text(" ")
		}
		p.depth, p.empty = 1, true
	}
}

func (p *printer) end() {
	if p.JSON {
		if p.Pretty && !p.empty {
			p.text(" ")
		}
		p.text("]\n")
	}
}

// separate begins another element.
func (p *printer) separate() {
	if !p.empty {
		p.text(",")
	}
	p.empty = false
}

// newLine begins a line of indented JSON.
func (p *printer) newLine() {
	if p.Pretty {
		p.text("\n" + strings.Repeat("    ", p.depth))
	}
}

// escape is what ip escapes in strings (jsonw_puts).
var escape = strings.NewReplacer("\t", `\t`, "\n", `\n`, "\r", `\r`, "\f", `\f`, "\b", `\b`, `\`, `\\`, `"`, `\"`)

// member prints a member of a JSON object, whose value is JSON too.
func (p *printer) member(name, value string) {
	p.separate()
	p.newLine()
	fmt.Fprintf(&p.b, "%q:", name)
	if p.Pretty {
		p.text(" ")
	}
	p.text(value)
}

// value prints something as text in a format, and with a name also in JSON.
func (p *printer) value(name, format, value string) {
	if !p.JSON {
		fmt.Fprintf(&p.b, format, value)
		return
	}
	if name != "" {
		p.member(name, `"`+escape.Replace(value)+`"`)
	}
}

// The colours of ip on a light and on a dark background (lib/color.c).
type colour struct{ light, dark string }

var (
	colourName    = colour{"\x1b[36m", "\x1b[1;36m"}
	colourAddress = colour{"\x1b[35m", "\x1b[1;35m"}
)

const colourEnd = "\x1b[0m"

func (p *printer) coloured(c colour, name, format, value string) {
	if p.JSON || p.Color == ColorNever {
		p.value(name, format, value)
		return
	}
	code := c.light
	if isDark(os.Getenv("COLORFGBG")) {
		code = c.dark
	}
	p.value(name, code+format+colourEnd, value)
}

// isDark reports whether the last number of COLORFGBG is that of a dark colour.
func isDark(s string) bool {
	i := strings.LastIndexByte(s, ';')
	if i < 0 || len(s) != i+2 {
		return false
	}
	return s[i+1] >= '0' && s[i+1] <= '6' || s[i+1] == '8'
}

func (p *printer) tunnel(c *tunnel.Config) {
	if p.JSON {
		p.separate()
		p.text("{")
		p.depth++
		p.empty = true
	}
	p.coloured(colourName, "ifname", "%s: ", c.Name)
	mode := "ip/ip"
	if c.AnyProtocol {
		mode = "any/ip"
	}
	p.value("mode", "%s ", mode)
	p.value("", "remote%s", " ")
	p.coloured(colourAddress, "remote", "%s ", p.host(c.Remote))
	p.value("", "local%s", " ")
	p.coloured(colourAddress, "local", "%s", p.address(c.Local))
	if c.Device != "" {
		p.value("dev", " dev %s", c.Device)
	}
	p.ttl(c.TTL)
	p.tos(tosByte(c))
	if c.NoPMTUDisc {
		if p.JSON {
			p.member("nopmtudisc", "null")
		} else {
			p.text(" nopmtudisc")
		}
	}
	if p.JSON {
		p.depth--
		p.newLine()
		p.text("}")
		p.empty = false
	}
}

func (p *printer) ttl(ttl uint8) {
	switch {
	case ttl == 0:
		p.value("", " ttl %s", "inherit")
	case p.JSON:
		p.member("ttl", fmt.Sprint(ttl))
	default:
		fmt.Fprintf(&p.b, " ttl %d", ttl)
	}
}

func (p *printer) tos(tos uint8) {
	switch {
	case tos == 0:
	case tos == 1:
		p.value("", " tos %s", "inherit")
	case p.JSON || tos&1 == 0:
		p.value("tos", " tos %s", p.tosName(tos))
	default:
		p.value("", " tos inherit/%s", p.tosName(tos&^1))
	}
}

func (p *printer) tosName(tos uint8) string {
	if name, ok := dsfield.Name(tos); ok && !p.Numeric {
		return name
	}
	return fmt.Sprintf("0x%02x", tos)
}

// address prints any only as text.
func (p *printer) address(a netip.Addr) string {
	switch {
	case a.IsValid():
		return a.String()
	case p.JSON:
		return "0.0.0.0"
	}
	return "any"
}

// resolveTimeout bounds a look-up of a host's name.
const resolveTimeout = 5 * time.Second

func (p *printer) host(a netip.Addr) string {
	if p.Resolve && a.IsValid() {
		ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
		defer cancel()
		if names, err := net.DefaultResolver.LookupAddr(ctx, a.String()); err == nil && len(names) > 0 {
			return strings.TrimSuffix(names[0], ".")
		}
	}
	return p.address(a)
}

// counters prints the block of -s (tnl_print_stats in ip/tunnel.c).
func (p *printer) counters(c map[string]uint64) {
	p.line()
	p.text("RX: Packets    Bytes        Errors CsumErrs OutOfSeq Mcasts")
	p.line()
	fmt.Fprintf(&p.b, "    %-10d %-12d %-6d %-8d %-8d %-8d",
		c["rx_packets"], c["rx_bytes"], c["rx_errors"], c["rx_frame_errors"], c["rx_fifo_errors"], c["multicast"])
	p.line()
	p.text("TX: Packets    Bytes        Errors DeadLoop NoRoute  NoBufs")
	p.line()
	fmt.Fprintf(&p.b, "    %-10d %-12d %-6d %-8d %-8d %-6d",
		c["tx_packets"], c["tx_bytes"], c["tx_errors"], c["collisions"], c["tx_carrier_errors"], c["tx_dropped"])
}
