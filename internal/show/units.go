package show

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// count returns n with its digits in groups, as 1,234,567.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, digit := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	return b.String()
}

// size returns n bytes in binary units, as 1.21 GiB.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	digits, unit := scale(float64(n), 1024, 3)
	return digits + " " + unit + "iB"
}

// Rate returns n bytes a second in decimal units of bits, as 941 Mbit/s.
func Rate(n uint64) string {
	bits := float64(n) * 8
	if bits < 1000 {
		return fmt.Sprintf("%.0f bit/s", bits)
	}
	digits, unit := scale(bits, 1000, 3)
	return digits + " " + lowerKilo(unit) + "bit/s"
}

// Short returns f in at most four columns, as 1.2k, for tables.
func Short(f float64) string {
	if f < 999.5 {
		return fmt.Sprintf("%.0f", f)
	}
	digits, unit := scale(f, 1000, 2)
	return digits + lowerKilo(unit)
}

// lowerKilo is for decimal units: k is 1000, and Ki 1024.
func lowerKilo(unit string) string {
	if unit == "K" {
		return "k"
	}
	return unit
}

// scale returns f in the unit in which it is less than 1000, with that many significant
// digits. f is at least about 1000.
func scale(f, base float64, significant int) (digits, unit string) {
	for _, unit = range []string{"K", "M", "G", "T", "P", "E"} {
		f /= base
		if f < 999.5 {
			break
		}
	}
	for decimals := significant - 1; decimals > 0; decimals-- {
		digits = strconv.FormatFloat(f, 'f', decimals, 64)
		if len(digits) <= significant+1 {
			return digits, unit
		}
	}
	return strconv.FormatFloat(f, 'f', 0, 64), unit
}

// units are those of durations.
var units = []struct {
	d           time.Duration
	long, short string
}{
	{365 * 24 * time.Hour, "", "y"},
	{24 * time.Hour, "d", "d"},
	{time.Hour, "h", "h"},
	{time.Minute, "min", "m"},
	{time.Second, "s", "s"},
}

// duration returns d in its two greatest units, as 2 h 5 min.
func duration(d time.Duration) string {
	d = max(d, 0)
	for i, u := range units {
		if u.long == "" || d < u.d {
			continue
		}
		s := fmt.Sprintf("%d %s", d/u.d, u.long)
		if i+1 < len(units) {
			if rest := d % u.d / units[i+1].d; rest > 0 {
				s += fmt.Sprintf(" %d %s", rest, units[i+1].long)
			}
		}
		return s
	}
	return "0 s"
}

// present is how long ago something may be to have happened now. Times of packets are
// to the second, and so is the refresh of a screen.
const present = 2 * time.Second

// ago returns when t was, as 3 s ago.
func (v View) ago(t time.Time) string {
	switch d := v.Now.Sub(t); {
	case t.IsZero():
		return "never"
	case d < present:
		return "now"
	default:
		return duration(d) + " ago"
	}
}

// ShortAgo returns the same in at most four columns, as 3s.
func ShortAgo(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < present:
		return "now"
	}
	for _, u := range units {
		if d >= u.d {
			return fmt.Sprintf("%d%s", d/u.d, u.short)
		}
	}
	return "now"
}

// since returns t and how long ago it was.
func (v View) since(t time.Time) string {
	return fmt.Sprintf("%s, since %s", duration(v.Now.Sub(t)), t.In(v.Now.Location()).Format("2006-01-02 15:04:05"))
}
