package show

import (
	"math"
	"testing"
	"time"
)

func TestUnits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1,000"}, {count(1234567), "1,234,567"},
		{count(math.MaxUint64), "18,446,744,073,709,551,615"},

		{size(0), "0 B"}, {size(999), "999 B"}, {size(1000), "0.98 KiB"}, {size(1024), "1.00 KiB"}, {size(10 << 10), "10.0 KiB"},
		{size(999 << 10), "999 KiB"}, {size(1000 << 10), "0.98 MiB"}, {size(1 << 40), "1.00 TiB"}, {size(math.MaxUint64), "16.0 EiB"},

		{Rate(0), "0 bit/s"}, {Rate(124), "992 bit/s"}, {Rate(125), "1.00 kbit/s"}, {Rate(1249), "9.99 kbit/s"},
		{Rate(12499), "100 kbit/s"}, {Rate(117625000), "941 Mbit/s"}, {Rate(1250000000), "10.0 Gbit/s"},
		{Rate(124999999), "1.00 Gbit/s"}, {Rate(math.MaxUint64), "148 Ebit/s"},

		{Short(0), "0"}, {Short(999), "999"}, {Short(1000), "1.0k"}, {Short(1249), "1.2k"}, {Short(9960), "10k"}, {Short(99600), "100k"},
		{Short(999499), "999k"}, {Short(999500), "1.0M"}, {Short(1e9), "1.0G"}, {Short(math.MaxUint64), "18E"},

		{duration(-time.Second), "0 s"}, {duration(999 * time.Millisecond), "0 s"}, {duration(59 * time.Second), "59 s"},
		{duration(time.Minute), "1 min"}, {duration(63 * time.Second), "1 min 3 s"}, {duration(2*time.Hour + 5*time.Minute + time.Second), "2 h 5 min"},
		{duration(time.Hour + time.Second), "1 h"}, {duration(75 * time.Hour), "3 d 3 h"}, {duration(1000 * 24 * time.Hour), "1000 d"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestAges(t *testing.T) {
	v := View{Now: time.Date(2026, 11, 26, 17, 41, 58, 5e8, time.UTC)}
	for _, c := range []struct {
		d           time.Duration
		long, short string
	}{
		{-time.Hour, "now", "now"}, {1999 * time.Millisecond, "now", "now"}, {2 * time.Second, "2 s ago", "2s"},
		{90 * time.Second, "1 min 30 s ago", "1m"}, {23 * time.Hour, "23 h ago", "23h"}, {364 * 24 * time.Hour, "364 d ago", "364d"},
		{800 * 24 * time.Hour, "800 d ago", "2y"},
	} {
		at := v.Now.Add(-c.d)
		if long, short := v.ago(at), ShortAgo(v.Now, at); long != c.long || short != c.short {
			t.Errorf("%v: %q, %q, want %q, %q", c.d, long, short, c.long, c.short)
		}
	}
	if long, short := v.ago(time.Time{}), ShortAgo(v.Now, time.Time{}); long != "never" || short != "-" {
		t.Errorf("never: %q, %q", long, short)
	}
}

// TestShortIsShort keeps the table's columns narrow.
func TestShortIsShort(t *testing.T) {
	for f := 1.0; f < 1e19; f *= 1.0007 {
		if s := Short(f); len(s) > 4 {
			t.Fatalf("Short(%v) = %q", f, s)
		}
	}
}

// TestNamesHaveAnOrder tries all pairs and triples of names, as sorting needs.
func TestNamesHaveAnOrder(t *testing.T) {
	names := []string{"1", "a", "a1", "a1b", "a1b2", "a10", "a10b", "a2", "b", "tun", "tun01", "tun1", "tun10", "tun2"}
	if CompareNames("tun2", "tun10") >= 0 || CompareNames("tun", "tun1") >= 0 {
		t.Error("numbers do not count")
	}
	for _, a := range names {
		for _, b := range names {
			if x, y := CompareNames(a, b), CompareNames(b, a); x != -y || (x == 0) != (a == b) {
				t.Errorf("%s and %s: %d, %d", a, b, x, y)
			}
			for _, c := range names {
				if CompareNames(a, b) < 0 && CompareNames(b, c) < 0 && CompareNames(a, c) >= 0 {
					t.Errorf("%s < %s < %s, and not %[1]s < %[3]s", a, b, c)
				}
			}
		}
	}
}
