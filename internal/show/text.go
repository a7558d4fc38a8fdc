package show

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// style is an SGR sequence of a terminal (console_codes(4)).
type style string

const (
	bold   style = "\x1b[1m"
	red    style = "\x1b[31m"
	green  style = "\x1b[32m"
	yellow style = "\x1b[33m"
	plain  style = "\x1b[0m"
)

func (v View) styled(s style, text string) string {
	if !v.Color {
		return text
	}
	return string(s) + text + string(plain)
}

var sequence = regexp.MustCompile("\x1b\\[[0-9;]*m")

// visible returns how many columns a text takes.
func visible(text string) int { return utf8.RuneCountInString(sequence.ReplaceAllString(text, "")) }

// scaled returns n with a unit, each of which is step times the one before it.
func scaled(n, step float64, units ...string) string {
	i := 0
	for n >= step && i < len(units)-1 {
		n /= step
		i++
	}
	if i == 0 || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

func bytesOf(n uint64) string {
	return scaled(float64(n), 1024, "B", "KiB", "MiB", "GiB", "TiB", "PiB")
}

// rate is a number of bytes per second, in bits.
func rate(bytes uint64) string {
	return scaled(float64(bytes)*8, 1000, "bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")
}

// shortRate is rate for a narrow column.
func shortRate(bytes uint64) string { return strings.ReplaceAll(rate(bytes), "bit/s", "b/s") }

func packetRate(n uint64) string {
	return scaled(float64(n), 1000, "packets/s", "k packets/s", "M packets/s")
}

// span is a duration in its two greatest units.
func span(d time.Duration) string {
	s := int(d.Round(time.Second) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", max(s, 0))
	case s < 3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%d h %d min", s/3600, s/60%60)
	}
	return fmt.Sprintf("%d d %d h", s/86400, s/3600%24)
}

func ago(d time.Duration) string {
	if d < time.Second {
		return "now"
	}
	return span(d) + " ago"
}
